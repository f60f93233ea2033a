"""Arrays that stay on disk: mapped, prefetched, and dropped from memory after use.

The kernel reads a mapped array page by page, as it is touched. For crops two kinds of madvise help: WILLNEED starts
long reads ahead, and DONTNEED drops the pages that were read, so that memory does not grow with the data. Neither
changes a value, and where the system has no madvise (Windows) both do nothing. A core crops 116 times as many views per
second from these arrays as a loader that decodes PNGs (benchmarks/loading.py).

Shapes: B crops, N frames (or views) of H rows.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from segdistill.core.errors import UserError

_ADVICE = hasattr(mmap, "MADV_WILLNEED") and hasattr(mmap, "MADV_DONTNEED")


def open_array(path: Path, remedy: str) -> np.ndarray:
    """Map the .npy file at `path`, read-only.

    Raises:
        UserError: no file, no array, or a truncated one; the message ends with `remedy`.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except Exception as error:  # a damaged header surfaces as nearly any type
        raise UserError(f"{path}: unreadable ({error}); {remedy}") from None
    if not isinstance(array, np.memmap):  # a zip, which NumPy opens as well
        array.close()
        raise UserError(f"{path}: unreadable (an archive instead of an array); {remedy}")
    found, needed = path.stat().st_size, array.offset + array.nbytes
    if found != needed:
        raise UserError(f"{path}: unreadable ({found} bytes, its header describes {needed}); {remedy}")
    return array


def prefetch(array: np.ndarray, frames: np.ndarray, tops: np.ndarray, rows: np.ndarray | int) -> int:
    """Start reading `rows` rows, (B,) or one number for all, from `tops` (B,) on of `frames` (B,) of array (N, H, ...).

    Return the bytes that they span.

    Without it the kernel reads around each missing page and waits for it: for a crop of a large frame that is many
    times the bytes, one read after the other.
    """
    row_bytes, rows = array.strides[1], np.broadcast_to(rows, tops.shape)
    mapping = _mapping(array) if _ADVICE else None
    if mapping is not None:
        file, start = mapping
        for frame, top, count in zip(frames.tolist(), tops.tolist(), rows.tolist(), strict=True):
            first = start + frame * array.strides[0] + top * row_bytes
            page = first - first % mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, page, first + count * row_bytes - page)
    return int(rows.sum()) * row_bytes


def drop_pages(array: np.ndarray) -> None:
    """Drop the pages of a mapped array from this process; the kernel's file cache may keep them.

    Only for arrays opened with `open_array`: a private, changed mapping would lose its changes.
    """
    mapping = _mapping(array) if _ADVICE else None
    if mapping is not None:
        mapping[0].madvise(mmap.MADV_DONTNEED)


def _mapping(array: np.ndarray) -> tuple[mmap.mmap, int] | None:
    """Return the file mapping of `array` and the byte at which it begins there; None for an array in memory."""
    owner, base = array, array.base
    while isinstance(base, np.ndarray):
        owner, base = base, base.base
    if not isinstance(base, mmap.mmap):
        return None
    # np.memmap maps from the last multiple of the granularity before the array on.
    start = owner.offset % mmap.ALLOCATIONGRANULARITY
    return base, start + _address(array) - _address(owner)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
