"""The classes of a data set: what they are called, their colours, and the ids that stand for them in label images.

A *class* is a number 0..C-1; 255 marks a pixel that is no class. The table travels with all that is made from the data:
the index of the prepared data, the headers of weights, the metadata of ONNX files, and the folders of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

IGNORE = 255
MOST_CLASSES = 255  # a class map has a byte for each pixel, and one of its values is IGNORE

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """Name, label id and RGB colour of each class, in the order of the classes.

    A class may go by several ids in the label images that are read; `label_ids` has the one that is written.
    """

    names: tuple[str, ...]
    label_ids: tuple[int, ...]
    colors: tuple[Color, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def palette(self) -> np.ndarray:
        """RGB uint8 (256, 3) by class; what is no class is black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self)] = self.colors
        return palette

    @property
    def label_id_of_class(self) -> np.ndarray:
        """Label ids uint8 (256,) by class; what is no class becomes 0."""
        label_ids = np.zeros(256, np.uint8)
        label_ids[: len(self)] = self.label_ids
        return label_ids

    def facts(self) -> dict:
        """The table as JSON-like values, as headers and metadata hold it."""
        return {
            "class_names": list(self.names),
            "label_ids": list(self.label_ids),
            "colors": [list(color) for color in self.colors],
        }

    @classmethod
    def of_facts(cls, facts: Mapping) -> ClassTable:
        """The table that `facts` gave; KeyError where it is not among them."""
        colors = tuple((red, green, blue) for red, green, blue in facts["colors"])
        return cls(tuple(facts["class_names"]), tuple(facts["label_ids"]), colors)
