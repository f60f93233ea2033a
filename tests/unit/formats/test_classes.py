"""The classes of a data set: the table travels unchanged, and pixels of labels become the classes it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.formats.classes import MAX_CLASSES, ClassTable
from segdistill.prepare.label_coding import ColorCoding, IdCoding
from segdistill.scoring.confusion import Confusion
from segdistill.scoring.evaluate import classes_of

TABLE = ClassTable(("sky", "sea", "straße"), (5, 1, 40), ((1, 2, 3), (250, 0, 0), (0, 0, 9)))


def test_a_table_comes_back_from_its_facts():
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


def test_a_missing_part_of_a_table_is_told():
    with pytest.raises(UserError, match="^colors: found missing"):
        ClassTable.of_facts({"class_names": ["sky"], "label_ids": [0]})


def test_what_is_no_class_is_black_and_label_id_0():
    assert TABLE.palette[:3].tolist() == [[1, 2, 3], [250, 0, 0], [0, 0, 9]]
    assert not TABLE.palette[3:].any()
    assert TABLE.label_id_of_class[:3].tolist() == [5, 1, 40]
    assert not TABLE.label_id_of_class[3:].any()
    assert not TABLE.palette[255].any()


def test_ids_become_classes():
    coding = IdCoding({7: 0, 3: 1, 200: 1}, ignored=[0])
    found = coding.classes(np.array([[7, 3, 200], [0, 7, 7]], np.uint8))
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1, 1], [255, 0, 0]]


def test_unknown_ids_are_told_with_what_is_allowed():
    coding = IdCoding({7: 0, 3: 1, 4: 1}, ignored=[0])
    with pytest.raises(UserError, match=r"^label ids 5, 255 are not in the table; allowed: 0, 3 to 4, 7$"):
        coding.classes(np.array([[7, 5], [0, 255]], np.uint8))
    with pytest.raises(UserError, match=r"label ids 8, 9, 10, 11, 12, 13, 14, 15 and 240 more are not"):
        coding.classes(np.arange(8, 256, dtype=np.uint8)[None])


def test_others_are_ignored_when_asked():
    ids = IdCoding({7: 0}, [], ignore_others=True)
    assert ids.classes(np.array([[7, 5]], np.uint8)).tolist() == [[0, 255]]
    colors = ColorCoding({(1, 2, 3): 0}, [], ignore_others=True)
    assert colors.classes(np.array([[[1, 2, 3], [255, 255, 255]]], np.uint8)).tolist() == [[0, 255]]


def test_colors_become_classes_by_all_three_channels():
    # Colours that differ in one channel, or in the order of the channels.
    coding = ColorCoding({(1, 2, 3): 0, (3, 2, 1): 1, (1, 2, 4): 2, (255, 255, 255): 3}, ignored=[(0, 0, 0)])
    pixels = [[[1, 2, 3], [3, 2, 1], [1, 2, 4]], [[0, 0, 0], [255, 255, 255], [1, 2, 3]]]
    found = coding.classes(np.array(pixels, np.uint8))
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1, 2], [255, 3, 0]]


def test_unknown_colors_are_told():
    coding = ColorCoding({(1, 2, 3): 0}, ignored=[(0, 0, 0)])
    with pytest.raises(UserError, match=r"label colors \[1, 2, 2\], \[255, 0, 0\] are not in the table, which has 2"):
        coding.classes(np.array([[[255, 0, 0], [1, 2, 3], [1, 2, 2]]], np.uint8))


def test_the_most_classes_fit_into_class_maps_and_scores():
    logits = torch.zeros(1, MAX_CLASSES, 1, 3)
    for place, number in enumerate((0, 128, MAX_CLASSES - 1)):
        logits[0, number, 0, place] = 1
    predicted = classes_of(logits, (1, 3))
    assert predicted.tolist() == [[[0, 128, 254]]]
    confusion = Confusion(MAX_CLASSES)
    confusion.add(predicted, torch.tensor([[[0, 255, 254]]], dtype=torch.uint8))
    assert confusion.counts.sum() == 2
    assert confusion.figures()["mean_iou"] == 1
