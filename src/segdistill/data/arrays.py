"""Arrays that stay on disk: mapped, prefetched, and dropped from memory after use.

The kernel reads a mapped array page by page, as it is touched. For crops two kinds of madvise help: WILLNEED starts
long reads ahead, and DONTNEED drops the pages that were read, so that memory does not grow with the data. Neither
changes a value, and where the system has no madvise (Windows) both do nothing. A core crops 116 times as many views per
second from these arrays as a loader that decodes PNGs (benchmarks/loading.py).

Shapes: B crops, N frames (or views) of H rows.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdistill.core.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_ADVICE = hasattr(mmap, "MADV_WILLNEED") and hasattr(mmap, "MADV_DONTNEED")
_MOST_FILES = 65536


class ShardedArray:
    """Shards as one array (N, ...), indexed along its first axis as NumPy does; further indices apply to each row.

    One row, and a slice inside one shard, is a view of the shard; other slices and lists of rows are copies.
    """

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        """Join `shards` (n, ...), which differ in n alone."""
        self.shards = list(shards)
        first = self.shards[0]
        assert all((one.dtype, one.shape[1:]) == (first.dtype, first.shape[1:]) for one in self.shards)
        self.dtype, self.ndim = first.dtype, first.ndim
        # starts[i] is the row at which shard i begins; the last one is the number of rows.
        self._starts = [0, *itertools.accumulate(len(shard) for shard in self.shards)]
        self.shape = (self._starts[-1], *first.shape[1:])
        self._mappings = [_mapping(shard) for shard in self.shards] if _ADVICE else [None] * len(self.shards)

    @classmethod
    def of(cls, array: np.ndarray | ShardedArray) -> ShardedArray:
        """Return `array` itself where it is sharded, else as the one shard."""
        return array if isinstance(array, ShardedArray) else cls([array])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self.shards)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return all rows in memory."""
        return np.concatenate(self.shards).astype(dtype or self.dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        rows, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(rows, int | np.integer):
            shard, row = self._place(int(rows))
            return self.shards[shard][(row, *rest)]
        if isinstance(rows, slice):
            first, end, step = rows.indices(len(self))
            shard, row = self._place(first) if first < end else (0, 0)
            if step == 1 and row + end - first <= len(self.shards[shard]):
                return self.shards[shard][(slice(row, row + max(end - first, 0)), *rest)]
        chosen = np.arange(len(self))[rows]
        # [0:0] of a shard has the right shape and type where no row is chosen.
        parts = [self[(int(row), *rest)] for row in chosen] or self.shards[0][(slice(0), *rest)]
        return np.array(parts)

    def _place(self, row: int) -> tuple[int, int]:
        """Return the shard of a row, and its place there."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        shard = bisect_right(self._starts, row) - 1
        return shard, row - self._starts[shard]

    def prefetch(self, frames: np.ndarray, tops: np.ndarray, rows: np.ndarray | int) -> int:
        """Start reads as the function `prefetch`."""
        frame_bytes, row_bytes = self.shards[0].strides[:2]
        rows = np.broadcast_to(rows, tops.shape)
        for frame, top, count in zip(frames.tolist(), tops.tolist(), rows.tolist(), strict=True):
            shard, place = self._place(frame)
            if (mapping := self._mappings[shard]) is None:
                continue
            file, start = mapping
            first = start + place * frame_bytes + top * row_bytes
            page = first - first % mmap.PAGESIZE
            file.madvise(mmap.MADV_WILLNEED, page, first + count * row_bytes - page)
        return int(rows.sum()) * row_bytes

    def drop_pages(self) -> None:
        """Drop pages as the function `drop_pages`."""
        for mapping in filter(None, self._mappings):
            mapping[0].madvise(mmap.MADV_DONTNEED)


Rows = np.ndarray | ShardedArray  # an array (N, ...) of frames or views


def open_array(path: Path, remedy: str) -> np.ndarray:
    """Map the .npy file at `path`, read-only.

    Raises:
        UserError: no file, no array, or a truncated one; the message ends with `remedy`.
    """
    _allow_many_files()
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


def prefetch(array: Rows, frames: np.ndarray, tops: np.ndarray, rows: np.ndarray | int) -> int:
    """Start reading `rows` rows, (B,) or one number for all, from `tops` (B,) on of `frames` (B,) of array (N, H, ...).

    Return the bytes that they span.

    Without it the kernel reads around each missing page and waits for it: for a crop of a large frame that is many
    times the bytes, one read after the other.
    """
    return ShardedArray.of(array).prefetch(frames, tops, rows)


def drop_pages(array: Rows) -> None:
    """Drop the pages of a mapped array from this process; the kernel's file cache may keep them.

    Only for arrays opened with `open_array`: a private, changed mapping would lose its changes.
    """
    ShardedArray.of(array).drop_pages()


@functools.cache
def _allow_many_files() -> None:
    """Raise this process's limit of open files as far as the system lets it.

    Python keeps the file of a mapping open, and the usual limit of 1,024 is that of four arrays of 250 shards.
    """
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit that it does not name
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


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
