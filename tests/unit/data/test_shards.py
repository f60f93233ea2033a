"""Arrays in shards: indexed like one array, opened as they were written, and refused by the shard's name."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.core.files import write_json
from segdistill.data import shards
from segdistill.data.arrays import ShardedArray, drop_pages, open_array, prefetch
from segdistill.data.prepared import PreparedData
from segdistill.data.shards import shard_file, shards_of
from segdistill.data.transforms import crop

LENGTHS = (3, 1, 0, 4)
ROWS, SIZE = sum(LENGTHS), (5, 6)


@pytest.fixture
def whole() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (ROWS, *SIZE, 3), np.uint8)


@pytest.fixture
def sharded(whole, tmp_path) -> ShardedArray:
    """The same in mapped shards of LENGTHS."""
    parts = np.split(whole, np.cumsum(LENGTHS)[:-1])
    for number, part in enumerate(parts):
        np.save(tmp_path / shard_file("images", number), part)
    return ShardedArray([open_array(tmp_path / shard_file("images", number), "") for number in range(len(parts))])


KEYS = [
    *(0, 2, 3, 4, 7, -1, -8, np.int64(5)),
    *(slice(None), slice(0, 3), slice(1, 5), slice(3, 4), slice(4, None), slice(6, 2), slice(0, 0), slice(3, 99)),
    *(slice(None, None, 2), slice(None, None, -1), slice(-3, -1), slice(None, -2)),
    *([0], [7, 0, 3, 3], np.array([2, 4]), [-1, 1], np.arange(ROWS) % 2 == 0),
    *((1, 2), (5, slice(1, 3), slice(2, 6)), (slice(None), slice(0, 2)), (slice(1, 2), 0, slice(1, 3)), ([4, 0], 1)),
    *((slice(5, 3), slice(0, 2)),),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indices_give_the_rows_of_the_whole_array(whole, sharded, key):
    found = sharded[key]
    assert (found.dtype, found.shape) == (whole.dtype, whole[key].shape)
    assert np.array_equal(found, whole[key])


def test_shape_rows_and_the_whole_are_those_of_the_array(whole, sharded):
    assert (sharded.shape, sharded.ndim, sharded.dtype, len(sharded)) == (whole.shape, 4, np.uint8, ROWS)
    assert np.array_equal(np.asarray(sharded), whole)
    assert np.asarray(sharded, np.float32).dtype == np.float32
    assert all(np.array_equal(found, row) for found, row in zip(sharded, whole, strict=True))


@pytest.mark.parametrize("row", [ROWS, -ROWS - 1, [ROWS]])
def test_row_beyond_the_last_is_an_index_error(sharded, row):
    with pytest.raises(IndexError):
        sharded[row]


@pytest.mark.parametrize("key", [4, slice(4, 6), slice(0, 3), (5, slice(1, 3))])
def test_rows_and_slices_inside_a_shard_are_views_of_it(sharded, key):
    assert any(np.shares_memory(sharded[key], shard) for shard in sharded.shards)


def test_crops_and_pages_of_several_shards_are_those_of_the_whole_array(whole, sharded):
    frames, origins, flips = np.array([6, 0, 3]), np.array([[1, 2], [0, 0], [2, 3]]), np.array([True, False, True])
    outs = []
    for source in (whole, sharded):
        outs.append(crop(source, frames, origins, flips, (3, 3), np.empty((3, 3, 3, 3), np.uint8)))
        assert prefetch(source, frames, origins[:, 0], 3) == 3 * 3 * SIZE[1] * 3
        drop_pages(source)
    assert np.array_equal(*outs)
    assert np.array_equal(np.asarray(sharded), whole)


def test_shards_have_a_thousand_frames_but_for_the_last():
    assert shards_of(2001) == [range(0, 1000), range(1000, 2000), range(2000, 2001)]
    assert (shards_of(1000), shards_of(0)) == ([range(0, 1000)], [])


def test_more_shards_than_the_usual_limit_of_open_files_are_mapped(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((1, 2), np.uint8))
    script = (
        "import resource, sys; from pathlib import Path\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "from segdistill.data.arrays import open_array\n"
        "print(len([open_array(Path(sys.argv[1]), '') for _ in range(200)]))"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "one.npy"], capture_output=True, text=True)
    assert done.stdout == "200\n", done.stderr


@pytest.fixture
def prepared(tmp_path):
    """Five frames in shards of two, as `prepare` writes them."""
    names = [{"name": name} for name in "abcde"]
    table = {"classes": ["road"], "label_ids": [7], "colors": [[128, 64, 128]]}
    write_json(tmp_path / "index.json", {"fingerprint": "x", "splits": {"train": {"frames": names}}} | table)
    (tmp_path / "train").mkdir()
    for number, count in enumerate((2, 2, 1)):
        for kind, shape in (("images", (4, 6, 3)), ("labels", (4, 6))):
            np.save(tmp_path / "train" / shard_file(kind, number), np.full((count, *shape), number, np.uint8))
    return tmp_path


def test_a_split_is_opened_from_its_shards(prepared):
    train = PreparedData.open(prepared).train
    assert (len(train), train.size_px) == (5, (4, 6))
    assert np.asarray(train.images)[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2]
    assert np.asarray(train.labels)[:, 0, 0].tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("number", "array", "message"),
    [
        (1, None, r"labels-00001\.npy: unreadable \(.*No such file.*\); run: dvc repro prepare"),
        (2, None, r"labels-00002\.npy: unreadable \(.*No such file"),
        (1, np.zeros((2, 4, 6), np.int16), r"labels-00001\.npy: holds int16 \[2, 4, 6\]; allowed are bytes of 3"),
        (
            1,
            np.zeros((2, 4, 7), np.uint8),
            r"labels-00001\.npy: holds uint8 \[2, 4, 7\]; .* before it are \[4, 6\]",
        ),
        (1, np.zeros((4, 4, 6), np.uint8), r"images \(5, .* and labels \(6, 4, 6\); the index has 5 frames"),
    ],
)
def test_a_shard_that_is_missing_or_does_not_fit_is_named(prepared, number, array, message):
    path = prepared / "train" / shard_file("labels", number)
    path.unlink() if array is None else np.save(path, array)
    with pytest.raises(UserError, match=message):
        _ = PreparedData.open(prepared).train


def test_shards_of_another_size_are_read_too(prepared, monkeypatch):
    monkeypatch.setattr(shards, "FRAMES_PER_SHARD", 5)
    assert len(PreparedData.open(prepared).train) == 5
