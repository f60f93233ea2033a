"""Cityscapes as published: the label table, the 19 evaluated classes, the colours and the names of the files.

Two numberings are in use. A *label id* (0..33) is what the official `_gtFine_labelIds.png` files hold. A *trainId*
(0..18, or 255 where a pixel is not evaluated) is what everything behind `prepare` works with.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from segdistill.base.class_table import IGNORE, ClassTable
from segdistill.base.errors import InputError
from segdistill.label_coding import IdCoding


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
    # Only in the polygon files: the official label images never hold it, so no pixel value stands for it.
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
LABEL_ID_OF_TRAIN_ID = TABLE.label_id_of_class  # what is no class becomes label id 0, "unlabeled"
PALETTE = TABLE.palette  # RGB by trainId; what is no class is black
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
    """(city, sequence, frame) of a name such as `aachen_000012_000019`; InputError when it is not of that form."""
    match = _STEM.fullmatch(stem)
    if match is None:
        raise InputError(f"{stem!r} does not follow <city>_<sequence>_<frame>, as in aachen_000012_000019")
    return match[1], match[2], match[3]
