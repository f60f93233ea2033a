"""Pixels of label images, ids or colours, become classes; unknown values are refused."""

from __future__ import annotations

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.prepare.label_coding import ColorCoding, IdCoding


def test_ids_become_classes():
    coding = IdCoding({7: 0, 3: 1, 200: 1}, ignored=[0])
    found = coding.classes(np.array([[7, 3, 200], [0, 7, 7]], np.uint8))
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1, 1], [255, 0, 0]]


def test_unknown_ids_are_reported_with_the_allowed_ones():
    coding = IdCoding({7: 0, 3: 1, 4: 1}, ignored=[0])
    with pytest.raises(UserError, match=r"^label ids 5, 255 are not in the table; allowed: 0, 3 to 4, 7$"):
        coding.classes(np.array([[7, 5], [0, 255]], np.uint8))
    with pytest.raises(UserError, match=r"label ids 8, 9, 10, 11, 12, 13, 14, 15 and 240 more are not"):
        coding.classes(np.arange(8, 256, dtype=np.uint8)[None])


def test_ignore_others_maps_unknown_values_to_ignore():
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


def test_unknown_colors_are_reported():
    coding = ColorCoding({(1, 2, 3): 0}, ignored=[(0, 0, 0)])
    with pytest.raises(UserError, match=r"label colors \[1, 2, 2\], \[255, 0, 0\] are not in the table, which has 2"):
        coding.classes(np.array([[[255, 0, 0], [1, 2, 3], [1, 2, 2]]], np.uint8))
