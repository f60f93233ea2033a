"""The prepared data: arrays that stay on disk, and the facts about them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from segdistill.class_table import ClassTable
from segdistill.errors import InputError
from segdistill.files import read_json
from segdistill.mapped import open_array

PREPARED = Path("data/prepared")


class Split(NamedTuple):
    """One split: images uint8 (N, H, W, 3) RGB and labels uint8 (N, H, W) classes, mapped; names of the frames."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]

    @property
    def size_px(self) -> tuple[int, int]:
        return self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)


def read_index(root: Path = PREPARED) -> dict:
    """The facts of `root`/index.json: source, size_px, classes, label_ids, colors, fingerprint, splits."""
    try:
        return read_json(root / "index.json")
    except FileNotFoundError:
        raise InputError(f"{root}/index.json: no prepared data; run: dvc repro prepare") from None
    except ValueError as error:
        raise InputError(f"{root}/index.json: damaged ({error}); run: dvc repro prepare") from None


def read_classes(root: Path = PREPARED) -> ClassTable:
    """The classes of the prepared data.

    Raises:
        InputError: the index says nothing of their colours, as that of an earlier version.
    """
    index = read_index(root)
    try:
        return ClassTable.of_facts(index | {"class_names": index["classes"]})
    except KeyError as missing:
        raise InputError(f"{root}/index.json: {missing} is missing; run: dvc repro prepare") from None


def open_split(name: str, root: Path = PREPARED) -> Split:
    """Map the split `name` ("train", "holdout" or "val") of `root`.

    Raises:
        InputError: the arrays do not fit the index, as after a copy that was cut short.
    """
    frames = read_index(root)["splits"][name]["frames"]
    remedy = "run: dvc repro prepare"
    images, labels = (open_array(root / name / f"{kind}.npy", remedy) for kind in ("images", "labels"))
    if len(images) != len(frames) or labels.shape != images.shape[:3]:
        raise InputError(
            f"{root}/{name}: images {images.shape} and labels {labels.shape}; the index has {len(frames)} frames"
        )
    return Split(images, labels, tuple(frame["name"] for frame in frames))
