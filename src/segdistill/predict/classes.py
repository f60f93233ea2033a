"""The names, ids and colours of a model's classes."""

from __future__ import annotations

from segdistill import cityscapes
from segdistill.base.class_table import ClassTable
from segdistill.base.errors import InputError


def class_table(facts: dict) -> ClassTable:
    """The table of the classes that a model with these facts gives; Cityscapes where an older file does not say.

    Raises:
        InputError: the file does not say, and their number is not that of Cityscapes.
    """
    if "class_names" in facts:
        return ClassTable.of_facts(facts)
    if facts["classes"] != cityscapes.CLASSES:
        raise InputError(f"gives {facts['classes']} classes and does not name them; Cityscapes has 19")
    return cityscapes.TABLE
