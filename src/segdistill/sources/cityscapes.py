"""Cityscapes as published: its folders `leftImg8bit/` and `gtFine/`, or the two official zips read in place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from segdistill import cityscapes
from segdistill.base.class_table import ClassTable
from segdistill.base.errors import InputError, raise_together
from segdistill.sources.file_tree import FolderTree, ZipTree
from segdistill.sources.frame import Frame, FrameData, Part, naming, read_parts, what_is_in
from segdistill.sources.png_file import decoded_label_ids, decoded_photograph, opened_png


def open_cityscapes(root: str | None) -> CityscapesFrames:
    """The data set in the folder `root`.

    Raises:
        InputError: it is not there, or not whole.
    """
    folder = Path(root or "").expanduser()
    halves = ((cityscapes.IMAGE_FOLDER, cityscapes.IMAGE_ZIP), (cityscapes.LABEL_FOLDER, cityscapes.LABEL_ZIP))
    trees: list[FolderTree | ZipTree] = []
    faults = []
    for top, archive in halves if root else ():
        try:
            if (folder / top).is_dir():
                trees.append(FolderTree(folder / top))
            elif (folder / archive).is_file():
                trees.append(ZipTree(folder / archive, top))
        except InputError as error:
            faults.append(str(error))
    if len(trees) + len(faults) < len(halves):
        faults.append(
            f"data.root: '{root or ''}' {what_is_in(folder) if root else 'is not set'}; allowed: a folder with "
            f"{' and '.join(f'{top}/' for top, _ in halves)}, or with {' and '.join(name for _, name in halves)}"
        )
    raise_together(faults, "no Cityscapes data")
    return CityscapesFrames(*trees)


@dataclass(frozen=True)
class CityscapesFrames:
    """The official data set, each half of it a folder or a zip."""

    images: FolderTree | ZipTree
    labels: FolderTree | ZipTree
    table: ClassVar[ClassTable] = cityscapes.TABLE

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        faults: list[str] = []
        images = _listed(self.images, split, "_leftImg8bit", cityscapes.IMAGE_SUFFIX, faults)
        labels = _listed(self.labels, split, "_gtFine_", cityscapes.LABEL_SUFFIX, faults)
        faults += [f"{images[stem]}: image without a label" for stem in sorted(images.keys() - labels.keys())]
        faults += [f"{labels[stem]}: label without an image" for stem in sorted(labels.keys() - images.keys())]
        stems = sorted(images.keys() & labels.keys())
        return [Frame(split, *cityscapes.split_stem(stem)[:2], stem, row) for row, stem in enumerate(stems)], faults

    def path_of(self, frame: Frame) -> str:
        return self.images.path_of(_file_name(frame, cityscapes.IMAGE_SUFFIX))

    def size_px(self, frame: Frame) -> tuple[int, int]:
        with naming(self.path_of(frame)):
            content = self.images.read(_file_name(frame, cityscapes.IMAGE_SUFFIX))
            with opened_png(content) as image:
                return image.height, image.width

    def read(self, frame: Frame) -> FrameData:
        image, label = (_file_name(frame, suffix) for suffix in (cityscapes.IMAGE_SUFFIX, cityscapes.LABEL_SUFFIX))
        return read_parts(
            Part(self.images.path_of(image), partial(self.images.read, image), decoded_photograph),
            Part(self.labels.path_of(label), partial(self.labels.read, label), _decoded_classes),
        )


def _decoded_classes(content: bytes) -> np.ndarray:
    return cityscapes.CODING.classes(decoded_label_ids(content))


def _file_name(frame: Frame, suffix: str) -> str:
    return f"{frame.split}/{frame.city}/{frame.name}{suffix}"


def _listed(tree: FolderTree | ZipTree, split: str, marker: str, suffix: str, faults: list[str]) -> dict[str, str]:
    """Path (for messages) of each stem whose file ends in `suffix`; misnamed PNGs go to `faults`.

    Other files that carry the official `marker` (colours, instances, polygons) and hidden files are passed over.
    """
    path_of_stem = {}
    for name in tree.files(split):
        _, city, file = name.split("/")
        lower = file.lower()
        if file.startswith(".") or not lower.endswith(".png"):
            continue
        if marker in file and not lower.endswith(suffix.lower()):
            continue
        try:
            if not file.endswith(suffix):
                raise InputError(f"a PNG here is named <city>_<sequence>_<frame>{suffix}, in lower case from .png on")
            stem = file.removesuffix(suffix)
            if cityscapes.split_stem(stem)[0] != city:
                raise InputError(f"lies in the folder of another city, {city!r}")
            path_of_stem[stem] = tree.path_of(name)
        except InputError as error:
            faults.append(f"{tree.path_of(name)}: {error}")
    return path_of_stem
