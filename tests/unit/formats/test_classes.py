"""The table of classes: it survives JSON unchanged, and its largest fits into class maps."""

from __future__ import annotations

import json

import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.formats.classes import MAX_CLASSES, ClassTable
from segdistill.scoring.confusion import Confusion
from segdistill.scoring.evaluate import classes_of

TABLE = ClassTable(("sky", "sea", "straße"), (5, 1, 40), ((1, 2, 3), (250, 0, 0), (0, 0, 9)))


def test_table_is_read_back_from_its_facts():
    assert ClassTable.of_facts(json.loads(json.dumps(TABLE.facts()))) == TABLE
    assert len(TABLE) == 3


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("class_names", None),
        ("class_names", "sky"),
        ("class_names", [1, 2, 3]),
        ("class_names", ["sky", "sea", "sky"]),
        ("class_names", []),
        ("label_ids", [1, 2]),
        ("label_ids", [1, 2, 256]),
        ("label_ids", [1, 2, True]),
        ("colors", None),
        ("colors", [[1, 2, 3], [250, 0, 0], [0, 9]]),
        ("colors", [[1, 2, 3], [250, 0, 0], [0, 0, -1]]),
        ("colors", 7),
    ],
)
def test_facts_that_are_no_table_are_refused(key, found):
    with pytest.raises(UserError, match=f"^{key}: found "):
        ClassTable.of_facts(TABLE.facts() | {key: found})


def test_missing_part_of_a_table_is_reported():
    with pytest.raises(UserError, match="^colors: found missing"):
        ClassTable.of_facts({"class_names": ["sky"], "label_ids": [0]})


def test_pixels_without_a_class_are_black_and_label_id_0():
    assert TABLE.palette[:3].tolist() == [[1, 2, 3], [250, 0, 0], [0, 0, 9]]
    assert not TABLE.palette[3:].any()
    assert TABLE.label_id_of_class[:3].tolist() == [5, 1, 40]
    assert not TABLE.label_id_of_class[3:].any()
    assert not TABLE.palette[255].any()


def test_255_classes_fit_into_class_maps_and_confusion():
    logits = torch.zeros(1, MAX_CLASSES, 1, 3)
    for place, number in enumerate((0, 128, MAX_CLASSES - 1)):
        logits[0, number, 0, place] = 1
    predicted = classes_of(logits, (1, 3))
    assert predicted.tolist() == [[[0, 128, 254]]]
    confusion = Confusion(MAX_CLASSES)
    confusion.add(predicted, torch.tensor([[[0, 255, 254]]], dtype=torch.uint8))
    assert confusion.counts.sum() == 2
    assert confusion.metrics()["mean_iou"] == 1
