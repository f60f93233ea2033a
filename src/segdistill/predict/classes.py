"""The ids and colours of a model's classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from segdistill import cityscapes
from segdistill.errors import InputError


class ClassTable(NamedTuple):
    """By class number, with an entry for every byte: label ids uint8 (256,), and RGB colours uint8 (256, 3)."""

    label_ids: np.ndarray
    palette: np.ndarray


def class_table(facts: dict) -> ClassTable:
    """The table of the classes that a model with these facts gives.

    Raises:
        InputError: their number is not that of the table.
    """
    if facts["classes"] != cityscapes.CLASSES:
        raise InputError(f"gives {facts['classes']} classes; the table of Cityscapes has {cityscapes.CLASSES}")
    return ClassTable(cityscapes.LABEL_ID_OF_TRAIN_ID, cityscapes.PALETTE)
