"""Write a tiny Cityscapes tree, in the official layout, from given arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.prepare import cityscapes


def image_path(root: Path, split: str, stem: str) -> Path:
    """Return the path of the photograph of frame `stem`, such as aachen_000000_000019, under `root`."""
    return root / "leftImg8bit" / split / stem.split("_")[0] / f"{stem}_leftImg8bit.png"


def label_path(root: Path, split: str, stem: str) -> Path:
    """Return the path of the label ids of frame `stem` under `root`."""
    return root / "gtFine" / split / stem.split("_")[0] / f"{stem}_gtFine_labelIds.png"


def write_frame(root: Path, split: str, stem: str, image: np.ndarray, label_ids: np.ndarray) -> None:
    """Write one frame: `image` uint8 (H, W, 3), `label_ids` uint8 (H, W)."""
    for path, array in ((image_path(root, split, stem), image), (label_path(root, split, stem), label_ids)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def random_frame(seed: int, size_px: tuple[int, int] = (8, 16)) -> tuple[np.ndarray, np.ndarray]:
    """Return noise: an image uint8 (H, W, 3) and label ids uint8 (H, W), all official ids among them if they fit."""
    rng = np.random.default_rng(seed)
    label_ids = rng.permutation(np.arange(size_px[0] * size_px[1]) % 34).astype(np.uint8).reshape(size_px)
    return rng.integers(0, 256, (*size_px, 3), np.uint8), label_ids


def write_city(
    root: Path, train: tuple[str, ...], val: tuple[str, ...], size_px: tuple[int, int] = (8, 16)
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write random frames of the given stems; return (image, label_ids) by stem."""
    written = {}
    for seed, (split, stem) in enumerate([("train", stem) for stem in train] + [("val", stem) for stem in val]):
        written[stem] = random_frame(seed, size_px)
        write_frame(root, split, stem, *written[stem])
    return written


def zip_city(root: Path, destination: Path) -> None:
    """Pack the tree under `root` into the two official zips in `destination`."""
    destination.mkdir(parents=True, exist_ok=True)
    for top, name in (("leftImg8bit", cityscapes.IMAGE_ZIP), ("gtFine", cityscapes.LABEL_ZIP)):
        with zipfile.ZipFile(destination / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((root / top).rglob("*")):
                archive.write(path, path.relative_to(root))
