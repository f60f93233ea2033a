"""A folder of images and label images of one's own, described by the `classes.yaml` in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segdistill.base.class_table import ClassTable
from segdistill.base.errors import InputError
from segdistill.sources.file_tree import FolderTree
from segdistill.sources.folder_description import FILE_NAME, Description, read_description
from segdistill.sources.folder_files import Pair, list_pairs
from segdistill.sources.frame import Frame, FrameData, Part, names_by_group, naming, read_parts, what_is_in
from segdistill.sources.image_file import decoded_label_colors, decoded_picture, picture_size_px
from segdistill.sources.png_file import decoded_label_ids


def open_folder(root: str | None) -> FolderFrames:
    """The data set in the folder `root`.

    Raises:
        InputError: there is no such folder, or its `classes.yaml` is missing or has values that are not allowed.
    """
    folder = Path(root or "").expanduser()
    if not root or not folder.is_dir():
        found = what_is_in(folder) if root else "is not set"
        raise InputError(f"data.root: '{root or ''}' {found}; allowed: a folder with {FILE_NAME}, images and labels")
    description = read_description(folder / FILE_NAME)
    layout = description.layout
    pairs, faults = list_pairs(folder, layout, "train")
    if layout.val_fraction is None:
        val, more = list_pairs(folder, layout, "val")
        faults += [fault for fault in more if fault not in faults]  # without {split} both look at the same files
        both = sorted({pair.name for pair in pairs} & {pair.name for pair in val})
        faults += [f"{folder}: frame '{name}' is in both splits, train and val" for name in both]
        train = pairs
    else:
        # Drawn by the names alone, so that results of other seeds are scored on the same frames.
        chosen = names_by_group(_frames("train", pairs), layout.val_fraction, "val")
        train = [pair for pair in pairs if pair.name not in chosen]
        val = [pair for pair in pairs if pair.name in chosen]
    return FolderFrames(FolderTree(folder), description, {"train": train, "val": val}, {"train": faults, "val": []})


def _frames(split: str, pairs: list[Pair]) -> list[Frame]:
    return [Frame(split, pair.group, "", pair.name, index) for index, pair in enumerate(pairs)]


@dataclass(frozen=True)
class FolderFrames:
    """Images as JPEG or PNG, labels as PNG of ids or colours."""

    tree: FolderTree
    description: Description
    pairs: dict[str, list[Pair]]
    listing_faults: dict[str, list[str]]

    @property
    def table(self) -> ClassTable:
        return self.description.table

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        return _frames(split, self.pairs[split]), list(self.listing_faults[split])

    def path_of(self, frame: Frame) -> str:
        return self.tree.path_of(self._pair(frame).image)

    def size_px(self, frame: Frame) -> tuple[int, int]:
        with naming(self.path_of(frame)):
            return picture_size_px(self.tree.read(self._pair(frame).image))

    def read(self, frame: Frame) -> FrameData:
        _, _, image, label = self._pair(frame)
        return read_parts(
            Part(self.tree.path_of(image), partial(self.tree.read, image), decoded_picture),
            Part(self.tree.path_of(label), partial(self.tree.read, label), self._decoded_classes),
            coding=self.description.digest,
        )

    def _pair(self, frame: Frame) -> Pair:
        return self.pairs[frame.split][frame.index]

    def _decoded_classes(self, content: bytes) -> np.ndarray:
        decode = decoded_label_ids if self.description.labels_are == "ids" else decoded_label_colors
        return self.description.coding.classes(decode(content))
