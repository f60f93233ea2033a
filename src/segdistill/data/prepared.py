"""The prepared data: the arrays of each split, and their index."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.data.arrays import Rows, ShardedArray, open_array
from segdistill.data.shards import shard_file
from segdistill.formats.classes import ClassTable
from segdistill.paths import PREPARED

_REMEDY = "run: dvc repro prepare"


class Split(NamedTuple):
    """One split: images uint8 (N, H, W, 3) RGB and labels uint8 (N, H, W) classes, mapped; names of the frames."""

    images: Rows
    labels: Rows
    names: tuple[str, ...]

    @property
    def size_px(self) -> tuple[int, int]:
        return self.images.shape[1:3]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class PreparedData:
    """The prepared data of a project; the index is read once, splits are mapped at their first use."""

    root: Path
    fingerprint: str
    table: ClassTable
    frame_names: dict[str, tuple[str, ...]]  # by split
    # By split: the city or recording of each frame. Frames of one group look alike.
    frame_groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unlabelled_frames: int = 0  # the last ones of train, all of whose pixels are ignored
    _class_frequency: dict[str, object] = field(default_factory=dict)

    @classmethod
    def open(cls, root: Path = PREPARED) -> PreparedData:
        """Read `root`/index.json.

        Raises:
            UserError: there is no such file, or a fact is missing or not valid.
        """
        path = root / "index.json"
        try:
            index = read_json(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no prepared data; {_REMEDY}") from None
        except UserError as error:
            raise UserError(f"{error}; {_REMEDY}") from None
        for key, form, is_right in (
            ("fingerprint", "a text", lambda value: isinstance(value, str)),
            ("classes", "a list of names", _are_names),
            ("splits", "the frames of each split, by name", _are_splits),
        ):
            if not is_right(index.get(key)):
                raise UserError(f"{path}: {key} is {index.get(key)!r:.100}; allowed is {form}; {_REMEDY}")
        try:
            table = ClassTable.of_facts(index | {"class_names": index["classes"]})
        except UserError as error:
            raise UserError(f"{path}: {error}; {_REMEDY}") from None
        names = {name: tuple(frame["name"] for frame in split["frames"]) for name, split in index["splits"].items()}
        groups = {
            name: tuple(str(frame.get("city") or frame["name"]) for frame in split["frames"])
            for name, split in index["splits"].items()
        }
        frequency = {name: split.get("class_frequency") for name, split in index["splits"].items()}
        unlabelled = index["splits"].get("train", {}).get("unlabelled", 0)
        if not isinstance(unlabelled, int) or not 0 <= unlabelled <= len(names.get("train", ())):
            raise UserError(
                f"{path}: unlabelled is {unlabelled!r:.100}; allowed is a number of train frames; {_REMEDY}"
            )
        return cls(root, index["fingerprint"], table, names, groups, unlabelled, frequency)

    @cached_property
    def train(self) -> Split:
        return self._open_split("train")

    @cached_property
    def holdout(self) -> Split:
        return self._open_split("holdout")

    @cached_property
    def val(self) -> Split:
        return self._open_split("val")

    @cached_property
    def unseen(self) -> Split | None:
        """Return the frames of data.unseen_groups, None where it names none."""
        return self._open_split("unseen") if "unseen" in self.frame_names else None

    def class_frequency(self, split: str) -> list[float]:
        """Return the share of each class of the labelled pixels of a split.

        Raises:
            UserError: the index does not have them.
        """
        found = self._class_frequency.get(split)
        are_shares = isinstance(found, list) and all(type(one) in (int, float) and 0 <= one <= 1 for one in found)
        if not isinstance(found, list) or not are_shares or len(found) != len(self.table):
            raise UserError(
                f"{self.root}/index.json: splits.{split}.class_frequency is {found!r:.100}; "
                f"allowed is the share of each of {len(self.table)} classes; {_REMEDY}"
            )
        return found

    def check_crop(self, section: str, crop_px: tuple[int, int], scale_range: tuple[float, float]) -> None:
        """Raise a UserError when crop_px or scale_range of a section of params do not fit into the frames."""
        frame_px = self.train.size_px
        if crop_px[0] > frame_px[0] or crop_px[1] > frame_px[1]:
            raise UserError(f"{section}.crop_px: found {list(crop_px)}; at most the frames' size {list(frame_px)}")
        least = max(crop_px[0] / frame_px[0], crop_px[1] / frame_px[1])
        if scale_range[1] < least:
            raise UserError(
                f"{section}.scale_range: found {list(scale_range)}; crops of {list(crop_px)} fit into the frames "
                f"{list(frame_px)} at scales from {least:.3f} on"
            )

    def _open_split(self, name: str) -> Split:
        """Map a split; raise a UserError where the arrays do not fit the index, as after an interrupted copy."""
        if name not in self.frame_names:
            found = ", ".join(self.frame_names) or "none"
            raise UserError(f"{self.root}/index.json: has no split {name}, but {found}; {_REMEDY}")
        names = self.frame_names[name]
        images, labels = (
            self._open_shards(self.root / name, kind, len(names), dimensions)
            for kind, dimensions in (("images", 4), ("labels", 3))
        )
        if len(images) != len(names) or labels.shape != images.shape[:3] or images.shape[3] != 3:
            shapes = f"images {images.shape} and labels {labels.shape}"
            raise UserError(f"{self.root}/{name}: {shapes}; the index has {len(names)} frames")
        return Split(images, labels, names)

    def _open_shards(self, folder: Path, kind: str, frames: int, dimensions: int) -> ShardedArray:
        """Map the shards of an array, one after the other until they have that many frames."""
        shards: list[np.ndarray] = []
        while not shards or sum(map(len, shards)) < frames:
            path = folder / shard_file(kind, len(shards))
            shard = open_array(path, _REMEDY)
            found = f"{shard.dtype} {list(shard.shape)}"
            if shard.dtype != np.uint8 or shard.ndim != dimensions:
                raise UserError(f"{path}: holds {found}; allowed are bytes of {dimensions} dimensions")
            if shards and shard.shape[1:] != shards[0].shape[1:]:
                size = list(shards[0].shape[1:])
                raise UserError(f"{path}: holds {found}; the frames of the shards before it are {size}; {_REMEDY}")
            shards.append(shard)
        return ShardedArray(shards)


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
