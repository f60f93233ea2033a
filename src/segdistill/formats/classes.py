"""The classes of a data set: their names, their colours, and their ids in label images.

A *class* is a number 0..C-1; IGNORE marks a pixel without a class. Everything made from the data holds the table: the
index of the prepared data, the headers of weights, the metadata of ONNX files, and the folders of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segdistill.core.errors import UserError

IGNORE = 255  # in labels: no class, so no loss and no metric
MAX_CLASSES = 255  # a class map has a byte per pixel, and IGNORE takes one of the values

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """Name, label id and RGB colour of each class, in the order of the classes.

    Label images may have several ids for a class; `label_ids` has the one that is written.
    """

    names: tuple[str, ...]
    label_ids: tuple[int, ...]
    colors: tuple[Color, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> np.ndarray:
        """Return RGB uint8 (256, 3) by class; other values are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self)] = self.colors
        return palette

    @property
    def label_id_of_class(self) -> np.ndarray:
        """Return label ids uint8 (256,) by class; other values become 0."""
        label_ids = np.zeros(256, np.uint8)
        label_ids[: len(self)] = self.label_ids
        return label_ids

    def facts(self) -> dict:
        """Return the table as JSON-like values, as headers and metadata hold it."""
        return {
            "class_names": list(self.names),
            "label_ids": list(self.label_ids),
            "colors": [list(color) for color in self.colors],
        }

    @classmethod
    def of_facts(cls, facts: Mapping) -> ClassTable:
        """Return the table in `facts`, the inverse of `facts()`.

        Raises:
            UserError: a part is missing or not valid.
        """

        def is_color(value: object) -> bool:
            return isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value))

        names = class_names_of(facts)
        for key, is_one in (("label_ids", _is_byte), ("colors", is_color)):
            values = facts.get(key)
            if not isinstance(values, list) or len(values) != len(names) or not all(map(is_one, values)):
                what = "missing" if values is None else f"{values!r:.60}"
                raise UserError(f"{key}: found {what}; allowed are 0 to 255 for each of {len(names)} classes")
        return cls(names, tuple(facts["label_ids"]), tuple(map(tuple, facts["colors"])))


def class_names_of(facts: Mapping) -> tuple[str, ...]:
    """Return the names of the classes in `facts`, in order.

    Raises:
        UserError: they are missing, or are not different texts.
    """
    names = facts.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"class_names: found {names!r:.60}; allowed are texts")
    if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise UserError(f"class_names: found {names!r:.60}; allowed are 1 to {MAX_CLASSES}, each once")
    return tuple(names)


def class_key(name: str) -> str:
    """Return the name of a class as a key of class_iou."""
    return name.replace(" ", "_")


def _is_byte(value: object) -> bool:
    return type(value) is int and 0 <= value <= 255
