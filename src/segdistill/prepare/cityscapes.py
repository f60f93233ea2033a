"""Cityscapes as published: the label table, the 19 evaluated classes, the colours and the names of the files.

Two numberings are in use. A *label id* (0..33) is what the official `_gtFine_labelIds.png` files hold. A *trainId*
(0..18, or 255 where a pixel is not evaluated) is the class that `prepare` stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from segdistill.core.errors import UserError, raise_all
from segdistill.formats.classes import IGNORE, ClassTable
from segdistill.prepare.file_tree import FolderTree, ZipTree
from segdistill.prepare.images import decode_label_ids, decode_photograph, png_size_px
from segdistill.prepare.label_coding import IdCoding
from segdistill.prepare.sources import Frame, FrameData, Part, describe_folder, name_path, read_pair


class Label(NamedTuple):
    """One row of the official table; `train_id` is 255 where the class is not evaluated, -1 for license plates."""

    name: str
    id: int
    train_id: int
    category: str
    color: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, 255, "void", (0, 0, 0)),
    Label("ego vehicle", 1, 255, "void", (0, 0, 0)),
    Label("rectification border", 2, 255, "void", (0, 0, 0)),
    Label("out of roi", 3, 255, "void", (0, 0, 0)),
    Label("static", 4, 255, "void", (0, 0, 0)),
    Label("dynamic", 5, 255, "void", (111, 74, 0)),
    Label("ground", 6, 255, "void", (81, 0, 81)),
    Label("road", 7, 0, "flat", (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", (244, 35, 232)),
    Label("parking", 9, 255, "flat", (250, 170, 160)),
    Label("rail track", 10, 255, "flat", (230, 150, 140)),
    Label("building", 11, 2, "construction", (70, 70, 70)),
    Label("wall", 12, 3, "construction", (102, 102, 156)),
    Label("fence", 13, 4, "construction", (190, 153, 153)),
    Label("guard rail", 14, 255, "construction", (180, 165, 180)),
    Label("bridge", 15, 255, "construction", (150, 100, 100)),
    Label("tunnel", 16, 255, "construction", (150, 120, 90)),
    Label("pole", 17, 5, "object", (153, 153, 153)),
    Label("polegroup", 18, 255, "object", (153, 153, 153)),
    Label("traffic light", 19, 6, "object", (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", (107, 142, 35)),
    Label("terrain", 22, 9, "nature", (152, 251, 152)),
    Label("sky", 23, 10, "sky", (70, 130, 180)),
    Label("person", 24, 11, "human", (220, 20, 60)),
    Label("rider", 25, 12, "human", (255, 0, 0)),
    Label("car", 26, 13, "vehicle", (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", (0, 60, 100)),
    Label("caravan", 29, 255, "vehicle", (0, 0, 90)),
    Label("trailer", 30, 255, "vehicle", (0, 0, 110)),
    Label("train", 31, 16, "vehicle", (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", (119, 11, 32)),
    # Only in the polygon files: the official label images never hold it, so it has no pixel value.
    Label("license plate", -1, -1, "vehicle", (0, 0, 142)),
)

_EVALUATED = sorted((label for label in LABELS if 0 <= label.train_id < IGNORE), key=lambda label: label.train_id)
CLASSES = len(_EVALUATED)
CLASS_NAMES = tuple(label.name for label in _EVALUATED)

TABLE = ClassTable(CLASS_NAMES, tuple(label.id for label in _EVALUATED), tuple(label.color for label in _EVALUATED))
# What the official label images may hold; the ids of the table have no gaps.
CODING = IdCoding(
    {label.id: label.train_id for label in _EVALUATED}, (label.id for label in LABELS if label.train_id == IGNORE)
)

# Look-up tables, uint8 (256,): every possible pixel value has an entry, so that they can be applied unchecked.
TRAIN_ID_OF_LABEL_ID = np.full(256, IGNORE, np.uint8)
for _label in _EVALUATED:
    TRAIN_ID_OF_LABEL_ID[_label.id] = _label.train_id
LABEL_ID_OF_TRAIN_ID = TABLE.label_id_of_class  # ignored pixels become label id 0, "unlabeled"
PALETTE = TABLE.palette  # RGB by trainId; ignored pixels are black
for _table in (TRAIN_ID_OF_LABEL_ID, LABEL_ID_OF_TRAIN_ID, PALETTE):
    _table.setflags(write=False)

# <root>/leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png, and the same under gtFine.
SPLITS = ("train", "val")
IMAGE_FOLDER, LABEL_FOLDER = "leftImg8bit", "gtFine"
IMAGE_SUFFIX, LABEL_SUFFIX = "_leftImg8bit.png", "_gtFine_labelIds.png"
IMAGE_ZIP, LABEL_ZIP = "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"

# ASCII digits of fixed width: sorting names then sorts by time within a sequence.
_STEM = re.compile(r"([A-Za-z0-9-]+)_([0-9]{6})_([0-9]{6})")


def split_stem(stem: str) -> tuple[str, str, str]:
    """Return (city, sequence, frame) of a name such as `aachen_000012_000019`; raise a UserError for another form."""
    match = _STEM.fullmatch(stem)
    if match is None:
        raise UserError(f"{stem!r} does not follow <city>_<sequence>_<frame>, as in aachen_000012_000019")
    return match[1], match[2], match[3]


def open_cityscapes(root: str | None) -> CityscapesFrames:
    """Return the data set in the folder `root`.

    Raises:
        UserError: it is not there, or not whole.
    """
    folder = Path(root or "").expanduser()
    halves = ((IMAGE_FOLDER, IMAGE_ZIP), (LABEL_FOLDER, LABEL_ZIP))
    trees: list[FolderTree | ZipTree] = []
    errors = []
    for top, archive in halves if root else ():
        try:
            if (folder / top).is_dir():
                trees.append(FolderTree(folder / top))
            elif (folder / archive).is_file():
                trees.append(ZipTree(folder / archive, top))
        except UserError as error:
            errors.append(str(error))
    if len(trees) + len(errors) < len(halves):
        errors.append(
            f"data.root: '{root or ''}' {describe_folder(folder) if root else 'is not set'}; allowed: a folder with "
            f"{' and '.join(f'{top}/' for top, _ in halves)}, or with {' and '.join(name for _, name in halves)}"
        )
    raise_all(errors, "no Cityscapes data")
    return CityscapesFrames(*trees)


@dataclass(frozen=True)
class CityscapesFrames:
    """The official data set, each half of it a folder or a zip."""

    images: FolderTree | ZipTree
    labels: FolderTree | ZipTree
    table: ClassVar[ClassTable] = TABLE
    independent_frames: ClassVar[bool] = False

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        images, errors = _list_files(self.images, split, "_leftImg8bit", IMAGE_SUFFIX)
        labels, more = _list_files(self.labels, split, "_gtFine_", LABEL_SUFFIX)
        errors += more
        if images and labels:
            errors += [f"{images[stem]}: image without a label" for stem in sorted(images.keys() - labels.keys())]
            errors += [f"{labels[stem]}: label without an image" for stem in sorted(labels.keys() - images.keys())]
        elif not errors:  # one message in place of one for each file of the other half
            for tree, found, suffix in ((self.images, images, IMAGE_SUFFIX), (self.labels, labels, LABEL_SUFFIX)):
                example = None if found else tree.example(split)
                if example or (not found and (images or labels)):
                    but = f", but {example}" if example else ""
                    name = f"CITY/CITY_SEQUENCE_FRAME{suffix}"
                    errors.append(f"{tree.path_of(split)}: no file there is named {name}{but}")
        stems = sorted(images.keys() & labels.keys())
        return [Frame(split, *split_stem(stem)[:2], stem, row) for row, stem in enumerate(stems)], errors

    def path_of(self, frame: Frame) -> str:
        return self.images.path_of(_file_name(frame, IMAGE_SUFFIX))

    def size_px(self, frame: Frame) -> tuple[int, int]:
        with name_path(self.path_of(frame)):
            return png_size_px(self.images.read(_file_name(frame, IMAGE_SUFFIX)))

    def read(self, frame: Frame) -> FrameData:
        image, label = (_file_name(frame, suffix) for suffix in (IMAGE_SUFFIX, LABEL_SUFFIX))
        return read_pair(
            Part(self.images.path_of(image), partial(self.images.read, image)),
            Part(self.labels.path_of(label), partial(self.labels.read, label)),
            lambda content, _: decode_photograph(content),
            _decode_classes,
        )

    def suspicions(self, pixels_C: np.ndarray) -> Iterator[str]:
        # Of the ids up to 18 there are six classes, road to pole; no street is without vegetation, sky and cars.
        beyond = [number for number, label_id in enumerate(TABLE.label_ids) if label_id >= CLASSES]
        if not pixels_C[beyond].any():
            yield (
                f"{self.labels.path_of('')}: no label has an id above {CLASSES - 1}: these may be trainIds under the "
                f"name {LABEL_SUFFIX}; read are label ids, such as 7 for road and 26 for car"
            )


def _decode_classes(content: bytes) -> np.ndarray:
    label_ids = decode_label_ids(content)
    try:
        return CODING.classes(label_ids)
    except UserError as error:
        if (label_ids[label_ids != IGNORE] < CLASSES).all():
            raise UserError(f"{error}; these look like trainIds, and label ids are read") from None
        raise


def _file_name(frame: Frame, suffix: str) -> str:
    return f"{frame.split}/{frame.city}/{frame.name}{suffix}"


def _list_files(tree: FolderTree | ZipTree, split: str, marker: str, suffix: str) -> tuple[dict[str, str], list[str]]:
    """Return the path, for messages, of each stem whose file ends in `suffix`, and an error for each misnamed PNG.

    Other files that carry the official `marker` (colours, instances, polygons) and hidden files are skipped.
    """
    path_of_stem = {}
    names, errors = tree.files(split)
    for name in names:
        _, city, file = name.split("/")
        lower = file.lower()
        if file.startswith(".") or not lower.endswith(".png"):
            continue
        if marker in file and not lower.endswith(suffix.lower()):
            continue
        try:
            if not file.endswith(suffix):
                raise UserError(f"a PNG here is named <city>_<sequence>_<frame>{suffix}, in lower case from .png on")
            stem = file.removesuffix(suffix)
            if split_stem(stem)[0] != city:
                raise UserError(f"in the folder of another city, {city!r}")
            path_of_stem[stem] = tree.path_of(name)
        except UserError as error:
            errors.append(f"{tree.path_of(name)}: {error}")
    return path_of_stem, errors
