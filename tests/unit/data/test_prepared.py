"""The prepared data as training opens them; an index or array that prepare did not write is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.data.prepared import PreparedData

INDEX = {
    "size_px": [4, 6],
    "classes": ["road", "car"],
    "label_ids": [7, 26],
    "colors": [[128, 64, 128], [0, 0, 142]],
    "fingerprint": "ab",
    "splits": {"train": {"frames": [{"name": "a"}, {"name": "b"}]}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, INDEX)
    (tmp_path / "train").mkdir()
    np.save(tmp_path / "train" / "images-00000.npy", np.zeros((2, 4, 6, 3), np.uint8))
    np.save(tmp_path / "train" / "labels-00000.npy", np.zeros((2, 4, 6), np.uint8))
    return tmp_path


def write(root: Path, index: object) -> None:
    (root / "index.json").write_text(index if isinstance(index, str) else json.dumps(index), encoding="utf-8")


def test_split_has_arrays_and_names(root):
    data = PreparedData.open(root)
    assert (data.train.size_px, len(data.train), data.train.names) == ((4, 6), 2, ("a", "b"))
    assert (data.fingerprint, data.table.names, data.table.label_ids) == ("ab", ("road", "car"), (7, 26))


def test_class_frequency_is_that_of_the_index(root):
    write(root, INDEX | {"splits": {"train": INDEX["splits"]["train"] | {"class_frequency": [0.25, 0.75]}}})
    assert PreparedData.open(root).class_frequency("train") == [0.25, 0.75]


@pytest.mark.parametrize("found", [None, [1.0], ["half", "half"], [-1, 2], 0.5])
def test_class_frequency_of_other_classes_is_refused(root, found):
    write(root, INDEX | {"splits": {"train": INDEX["splits"]["train"] | {"class_frequency": found}}})
    with pytest.raises(
        UserError, match=r"splits\.train\.class_frequency is .*; allowed is the share of each of 2 class"
    ):
        PreparedData.open(root).class_frequency("train")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "no readable JSON"),
        ("[" * 100_000, "no readable JSON"),
        ([INDEX], "holds a list; allowed is a JSON object"),
        (INDEX | {"fingerprint": None}, "fingerprint is None; allowed is a text"),
        (INDEX | {"classes": []}, r"classes is \[\]; allowed is a list of names"),
        (INDEX | {"classes": [1]}, r"classes is \[1\]"),
        (INDEX | {"label_ids": [7]}, r"label_ids: found \[7\]; allowed are 0 to 255 for each of 2 classes"),
        (
            {key: INDEX[key] for key in ("classes", "fingerprint")},
            "splits is None; allowed is the frames of each split",
        ),
        (INDEX | {"splits": [1]}, r"splits is \[1\]"),
        (INDEX | {"splits": {"train": {"frames": [{"city": "a"}]}}}, "splits is .*city"),
    ],
)
def test_index_that_says_too_little_is_refused(root, index, message):
    write(root, index)
    with pytest.raises(UserError, match=rf"index\.json: {message}.*; run: dvc repro prepare$"):
        PreparedData.open(root)


def test_split_that_the_index_lacks_is_refused(root):
    with pytest.raises(UserError, match=r"index\.json: has no split val, but train; run: dvc repro prepare"):
        _ = PreparedData.open(root).val


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("images", (2, 4, 6, 3), np.float32, r"images-00000\.npy: holds float32 \[2, 4, 6, 3\]; allowed are bytes"),
        (
            "images",
            (2, 4, 6),
            np.uint8,
            r"images-00000\.npy: holds uint8 \[2, 4, 6\]; allowed are bytes of 4 dimensions",
        ),
        ("images", (), np.uint8, r"images-00000\.npy: holds uint8 \[\]"),
        ("images", (2, 4, 6, 4), np.uint8, r"images \(2, 4, 6, 4\) and labels"),
        ("images", (3, 4, 6, 3), np.uint8, "the index has 2 frames"),
        ("labels", (2, 4, 5), np.uint8, r"labels \(2, 4, 5\)"),
        ("labels", (2, 4, 6), np.int64, r"labels-00000\.npy: holds int64"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(root, name, shape, dtype, message):
    np.save(root / "train" / f"{name}-00000.npy", np.zeros(shape, dtype))
    with pytest.raises(UserError, match=message):
        _ = PreparedData.open(root).train


def test_crop_larger_than_the_frames_is_refused(root):
    PreparedData.open(root).check_crop("distill", (4, 6), (1.0, 1.0))
    with pytest.raises(UserError, match=r"distill\.crop_px: found \[4, 8\]; at most the frames' size \[4, 6\]"):
        PreparedData.open(root).check_crop("distill", (4, 8), (1.0, 1.0))


def test_scales_at_which_no_crop_fits_into_the_frames_are_refused(root):
    PreparedData.open(root).check_crop("distill", (2, 4), (0.1, 0.7))
    with pytest.raises(
        UserError, match=r"distill\.scale_range: found \[0\.1, 0\.6\]; crops of \[2, 4\] fit .* from 0\.667 on"
    ):
        PreparedData.open(root).check_crop("distill", (2, 4), (0.1, 0.6))
