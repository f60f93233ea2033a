"""Mapped arrays: whole or refused, and out of memory again after they were read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.data.arrays import drop_pages, open_array, prefetch
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.training.batches import DROP_AFTER_BYTES, CropLoader

needs_proc = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux: /proc/self/smaps")


def saved(folder: Path, *shape: int) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.save(folder / "array.npy", values)
    return folder / "array.npy", values


def resident_kb(path: Path) -> int:
    """Return how much of the file is in this process's memory."""
    text = Path("/proc/self/smaps").read_text()
    entry = re.search(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", text)
    assert entry, f"{path} is not mapped"
    return int(entry[1])


def test_opened_array_is_the_saved_one_and_read_only(tmp_path):
    path, values = saved(tmp_path, 3, 4, 5)
    array = open_array(path, "run: x")
    assert np.array_equal(array, values)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("damage", ["missing", "empty", "no array", "cut", "longer"])
def test_damaged_array_is_refused_with_a_remedy(tmp_path, damage):
    path, _ = saved(tmp_path, 3, 400)
    whole = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "no array": b"x" * 500, "cut": whole[:-1], "longer": whole + b"x"}[damage])
    with pytest.raises(UserError, match=r"array\.npy: unreadable \(.*\); run: x"):
        open_array(path, "run: x")


@pytest.mark.parametrize("view", [lambda a: a, lambda a: a.reshape(6, 5, 8), lambda a: np.asarray(a), lambda a: a[1:]])
def test_prefetch_and_drop_pages_change_no_value(tmp_path, view):
    path, _ = saved(tmp_path, 3, 10, 8)
    array = view(open_array(path, ""))
    before = array.copy()
    prefetch(array, np.array([1]), np.array([2]), 3)
    drop_pages(array)
    assert np.array_equal(array, before)


def test_prefetch_and_drop_pages_leave_arrays_in_memory_alone():
    array = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    assert prefetch(array, np.array([1]), np.array([2]), 2) == 10
    drop_pages(array)
    assert np.array_equal(array.ravel(), np.arange(60))


@needs_proc
def test_memory_does_not_grow_with_the_batches_of_a_large_split(tmp_path):
    frames, frame_px, crop_px = 192, (512, 1024), (256, 256)
    arrays = {}
    for name, shape in (("images", (frames, *frame_px, 3)), ("labels", (frames, *frame_px))):
        np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shape)  # a hole, which needs no disk
        arrays[name] = open_array(tmp_path / f"{name}.npy", "")
    split = Split(arrays["images"], arrays["labels"], tuple(map(str, range(frames))))
    origins = ViewSpec("data", frames, frame_px, crop_px, views=4, stride=4, seed=0).origins()
    batches = CropLoader(split, BatchSampler(0, "distill", frames, 4, 4, 0.5, 0.0), origins, crop_px)
    spanned = highest = 0
    for _, batch in batches.steps(0, 64):
        spanned += len(batch.images) * crop_px[0] * frame_px[1] * 4
        highest = max(highest, resident_kb(tmp_path / "images.npy") * 1024)
    assert spanned > 3 * DROP_AFTER_BYTES
    assert 0 < highest <= 1.5 * DROP_AFTER_BYTES
