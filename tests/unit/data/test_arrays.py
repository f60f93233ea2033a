"""Mapped arrays: the bytes that are asked for, and what stays in memory."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.data.arrays import drop_pages, open_array, prefetch
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler, view_origins
from segdistill.training.batches import RELEASE_AFTER_BYTES, CropLoader

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux: /proc/self/smaps")


def saved(folder: Path, *shape: int) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(folder / "array.npy", values)
    return folder / "array.npy", values


def resident_kb(path: Path) -> int:
    """How much of the file is in this process's memory."""
    text = Path("/proc/self/smaps").read_text()
    entry = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", text)
    assert entry, f"{path} is not mapped"
    return int(entry[1])


def test_an_opened_array_is_the_saved_one_and_read_only(tmp_path):
    path, values = saved(tmp_path, 3, 4, 5)
    array = open_array(path, "run: x")
    assert np.array_equal(array, values)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("spoilt", ["missing", "empty", "no array", "cut", "longer"])
def test_what_is_no_whole_array_is_refused(tmp_path, spoilt):
    path, _ = saved(tmp_path, 3, 400)
    whole = path.read_bytes()
    path.unlink()
    if spoilt != "missing":
        path.write_bytes({"empty": b"", "no array": b"x" * 500, "cut": whole[:-1], "longer": whole + b"x"}[spoilt])
    with pytest.raises(UserError, match=r"array\.npy: unreadable \(.*\); run: x"):
        open_array(path, "run: x")


class Advised:
    """Stands in for a mapping, and notes what it is told."""

    def __init__(self, monkeypatch) -> None:
        self.told = []
        monkeypatch.setattr("segdistill.data.arrays._mapping", lambda array: (self, 128))

    def madvise(self, *words: int) -> None:
        self.told.append(words)


def test_whole_pages_of_the_rows_are_asked_for(tmp_path, monkeypatch):
    page, advised = mmap.PAGESIZE, Advised(monkeypatch)
    array = np.zeros((4, 10, page), np.uint8)
    assert prefetch(array, np.array([0, 3]), np.array([0, 6]), 2) == 2 * 2 * page
    # From the page in which the first row begins to the byte in which the last one ends.
    first, second = (mmap.MADV_WILLNEED, 0, 128 + 2 * page), (mmap.MADV_WILLNEED, 36 * page, 128 + 2 * page)
    assert advised.told == [first, second]


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a.reshape(6, 5, 8), lambda a: np.asarray(a), lambda a: a[1:]])
def test_views_of_a_mapped_array_are_found_in_their_file(tmp_path, view):
    path, _ = saved(tmp_path, 3, 10, 8)
    array = view(open_array(path, ""))
    before = array.copy()
    prefetch(array, np.array([1]), np.array([2]), 3)
    drop_pages(array)
    assert np.array_equal(array, before)


def test_arrays_in_memory_are_left_alone():
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    assert prefetch(array, np.array([1]), np.array([2]), 2) == 10
    drop_pages(array)
    assert np.array_equal(array.ravel(), np.arange(60))


@needs_proc
def test_released_pages_leave_the_memory_of_the_process(tmp_path):
    path, values = saved(tmp_path, 64, 256, 256)
    array = open_array(path, "")
    assert array.sum(dtype=np.int64) == values.sum(dtype=np.int64)
    assert resident_kb(path) >= values.nbytes // 1024
    drop_pages(array)
    assert resident_kb(path) <= 64
    assert np.array_equal(array, values)


@needs_proc
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_batches_of_a_large_split_do_not_gather_in_memory(tmp_path):
    frames, frame_px, crop_px = 192, (512, 1024), (256, 256)
    arrays = {}
    for name, shape in (("images", (frames, *frame_px, 3)), ("labels", (frames, *frame_px))):
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shape)  # a hole, which needs no disk
        arrays[name] = open_array(tmp_path / f"{name}.npy", "")
    split = Split(arrays["images"], arrays["labels"], tuple(map(str, range(frames))))
    origins = view_origins(0, frames, 4, frame_px, crop_px, 4)
    batches = CropLoader(split, BatchSampler(0, "distill", frames, 4, 4, 0.5, 0.0), origins, crop_px)
    spanned = highest = 0
    for _, batch in batches.steps(0, 64):
        spanned += len(batch.images) * crop_px[0] * frame_px[1] * 4
        highest = max(highest, resident_kb(tmp_path / "images.npy") * 1024)
    assert spanned > 3 * RELEASE_AFTER_BYTES
    assert 0 < highest <= 1.5 * RELEASE_AFTER_BYTES
