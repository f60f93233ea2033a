"""The label table against the package that the data set's authors publish."""

from __future__ import annotations

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.prepare import cityscapes


def test_table_equals_the_official_one():
    official = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    assert [(row.name, row.id, row.trainId, row.category, row.color) for row in official] == list(cityscapes.LABELS)


def test_look_up_tables_follow_the_official_table():
    official = pytest.importorskip("cityscapesscripts.helpers.labels")
    for label_id in range(256):
        row = official.id2label.get(label_id)
        expected = row.trainId if row else cityscapes.IGNORE
        assert cityscapes.TRAIN_ID_OF_LABEL_ID[label_id] == expected
        pixel = np.array([[label_id]], np.uint8)
        if row:
            assert cityscapes.CODING.classes(pixel).tolist() == [[expected]]
        else:
            with pytest.raises(UserError, match=rf"label ids {label_id} are not in the table; allowed: 0 to 33"):
                cityscapes.CODING.classes(pixel)
    for train_id, name in enumerate(cityscapes.CLASS_NAMES):
        row = official.trainId2label[train_id]
        assert (name, tuple(cityscapes.PALETTE[train_id])) == (row.name, row.color)
        assert cityscapes.LABEL_ID_OF_TRAIN_ID[train_id] == row.id


def test_there_and_back_and_what_is_ignored():
    train_ids = np.arange(cityscapes.CLASSES)
    assert len(cityscapes.CLASS_NAMES) == cityscapes.CLASSES == 19
    label_ids = cityscapes.LABEL_ID_OF_TRAIN_ID[train_ids]
    np.testing.assert_array_equal(cityscapes.TRAIN_ID_OF_LABEL_ID[label_ids], train_ids)
    assert not cityscapes.PALETTE[cityscapes.CLASSES :].any()
    assert cityscapes.LABEL_ID_OF_TRAIN_ID[cityscapes.IGNORE] == 0


def test_names_of_files():
    assert cityscapes.split_stem("bad-honnef_000012_000019") == ("bad-honnef", "000012", "000019")
    for stem in ("aachen", "aachen_12_19", "aachen_000012_000019_x", "../aachen_000012_000019", "a_000012_00001٣", ""):
        with pytest.raises(UserError, match="<city>_<sequence>_<frame>"):
            cityscapes.split_stem(stem)
