"""The prepared data: arrays that stay on disk, and the facts about them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from segdistill.base.class_table import ClassTable
from segdistill.base.errors import InputError
from segdistill.base.files import read_json
from segdistill.frames.mapped import open_array

PREPARED = Path("data/prepared")
_REMEDY = "run: dvc repro prepare"


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
    """The facts of `root`/index.json: source, size_px, classes, label_ids, colors, fingerprint, splits.

    Raises:
        InputError: there is no such file, or it does not say what training needs to know.
    """
    try:
        index = read_json(root / "index.json")
    except FileNotFoundError:
        raise InputError(f"{root}/index.json: no prepared data; {_REMEDY}") from None
    except InputError as error:
        raise InputError(f"{error}; {_REMEDY}") from None
    for key, form, right in (
        ("fingerprint", "a text", lambda value: isinstance(value, str)),
        ("classes", "a list of names", _are_names),
        ("splits", "the frames of each split, by name", _are_splits),
    ):
        if not right(index.get(key)):
            raise InputError(f"{root}/index.json: {key} is {index.get(key)!r:.100}; allowed is {form}; {_REMEDY}")
    return index


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _are_splits(value: object) -> bool:
    if not isinstance(value, dict) or not all(isinstance(split, dict) for split in value.values()):
        return False
    listings = [split.get("frames") for split in value.values()]
    return all(
        isinstance(frames, list)
        and all(isinstance(frame, dict) and isinstance(frame.get("name"), str) for frame in frames)
        for frames in listings
    )


def read_classes(root: Path = PREPARED) -> ClassTable:
    """The classes of the prepared data.

    Raises:
        InputError: the index says nothing of their colours, as that of an earlier version.
    """
    index = read_index(root)
    try:
        return ClassTable.of_facts(index | {"class_names": index["classes"]})
    except InputError as error:
        raise InputError(f"{root}/index.json: {error}; {_REMEDY}") from None


def open_split(name: str, root: Path = PREPARED) -> Split:
    """Map the split `name` ("train", "holdout" or "val") of `root`.

    Raises:
        InputError: the arrays do not fit the index, as after a copy that was cut short.
    """
    splits = read_index(root)["splits"]
    if name not in splits:
        raise InputError(f"{root}/index.json: has no split {name}, but {', '.join(splits) or 'none'}; {_REMEDY}")
    frames = splits[name]["frames"]
    images, labels = (open_array(root / name / f"{kind}.npy", _REMEDY) for kind in ("images", "labels"))
    for kind, array, dimensions in (("images", images, 4), ("labels", labels, 3)):
        if array.dtype != np.uint8 or array.ndim != dimensions:
            found = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"{root}/{name}/{kind}.npy: holds {found}; allowed are bytes of {dimensions} dimensions")
    if len(images) != len(frames) or labels.shape != images.shape[:3] or images.shape[3] != 3:
        raise InputError(
            f"{root}/{name}: images {images.shape} and labels {labels.shape}; the index has {len(frames)} frames"
        )
    return Split(images, labels, tuple(frame["name"] for frame in frames))
