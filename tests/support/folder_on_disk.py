"""Write a tiny data set of a user: a folder with classes.yaml, images and label images, from given arrays."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml
from PIL import Image

CLASSES = [
    {"name": "grass", "ids": [1], "color": [0, 160, 0]},
    {"name": "barn owl", "ids": [2, 9], "color": [200, 180, 90]},
    {"name": "straße", "ids": [40], "color": [90, 90, 90]},
]
DESCRIPTION = {"classes": CLASSES, "ignore": [0, 255]}
IDS = np.array([0, 1, 2, 9, 40, 255], np.uint8)
CLASS_OF_ID = {0: 255, 1: 0, 2: 1, 9: 1, 40: 2, 255: 255}


def settings(root: Path | str, **changed) -> SimpleNamespace:
    """Return a `data` section that reads the folder `root`."""
    return SimpleNamespace(
        **{"source": "folder", "root": str(root), "size_px": None, "holdout_fraction": 0.4, "holdout_by": "groups"}
        | {"unlabelled": None, "unseen_groups": ()}
        | changed
    )


def describe(root: Path, **changed) -> None:
    """Write classes.yaml: DESCRIPTION with other keys; a key given as None is left out."""
    root.mkdir(parents=True, exist_ok=True)
    keys = {key: value for key, value in (DESCRIPTION | changed).items() if value is not None}
    (root / "classes.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(keys)), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def pixels(seed: int, size_px: tuple[int, int] = (6, 10)) -> tuple[np.ndarray, np.ndarray]:
    """Return noise: an image uint8 (H, W, 3) and label ids uint8 (H, W), each of IDS among them."""
    rng = np.random.default_rng(seed)
    label_ids = rng.permutation(IDS[np.arange(size_px[0] * size_px[1]) % len(IDS)]).reshape(size_px)
    return rng.integers(0, 256, (*size_px, 3), np.uint8), label_ids


def write_image(path: Path, array: np.ndarray, **options) -> None:
    """Save an array in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def write_frames(root: Path, train: tuple[str, ...], val: tuple[str, ...], size_px: tuple[int, int] = (6, 10)) -> dict:
    """Write PNG frames of the given names in the default layout; (image, label ids) by name."""
    written = {}
    for seed, (split, name) in enumerate([("train", name) for name in train] + [("val", name) for name in val]):
        written[name] = pixels(seed, size_px)
        write_image(root / "images" / split / f"{name}.png", written[name][0])
        write_image(root / "labels" / split / f"{name}.png", written[name][1])
    return written


def classes_of(label_ids: np.ndarray) -> np.ndarray:
    """Return classes uint8 of label ids, by the table above, pixel by pixel."""
    return np.vectorize(CLASS_OF_ID.get, otypes=[np.uint8])(label_ids)
