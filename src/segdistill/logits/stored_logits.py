"""Logits as they lie on disk: float32, float16, or uint8 with a scale; written in order, read batch by batch.

    logits.npy  (N, K, h, w, C), or (N, h, w, C) for whole frames; channels last, so that a view is one long read
    scale.npy   uint8 only: float16 (N, K, h, 2, C), or (N, h, 2, C): offset and step of each class in each row
    rows.npy    where some views are stored only: int32 (N, K), the place of each in the arrays, which are then
                (M, h, w, C) and (M, h, 2, C); -1 where it is not stored

logit = offset + step * stored. A scale for each class of each row costs 4 C / w bytes more per vector than one for each
class of the view, and errs several times less; one for each cell, over its classes, costs 4 bytes per vector and errs
more as well (benchmarks/cache_precision.py). Offsets are kept, because only a softmax over classes may forget them.

Shapes: B crops, N frames, K views, M stored views or frames, h/w cells of the logits' grid, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segdistill.base.errors import InputError
from segdistill.frames.mapped import open_array, release, will_read
from segdistill.frames.rng import BatchPlan
from segdistill.frames.transforms import cut

LOGITS, SCALE, ROWS = "logits.npy", "scale.npy", "rows.npy"
_LEVELS = 255
_REMEDY = "run: dvc repro teacher-logits"


def quantised(logits_BhwC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 logits as uint8 (B, h, w, C) and scale float16 (B, h, 2, C): offset, then step.

    The range of each row and class is spread over 256 levels, so that no logit is off by more than half a step. Logits
    that are not finite, or beyond float16, leave a scale that is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        least, most = logits_BhwC.min(2), logits_BhwC.max(2)
        offset = least.astype(np.float16)
        # Rounded outwards: the levels then cover the range to its ends.
        offset = np.where(offset > least, np.nextafter(offset, np.float16(-np.inf)), offset)
        range_BhC = most - offset.astype(np.float32)
        step = (range_BhC / _LEVELS).astype(np.float16)
        step = np.where(step.astype(np.float32) * _LEVELS < range_BhC, np.nextafter(step, np.float16(np.inf)), step)
        scale = np.stack([offset, step], axis=2)
        divisor = np.where(step > 0, step, 1).astype(np.float32)[:, :, None]
        stored = np.rint((logits_BhwC - offset.astype(np.float32)[:, :, None]) / divisor)
        return np.nan_to_num(stored).clip(0, _LEVELS).astype(np.uint8), scale


def rows_of(stored: np.ndarray) -> np.ndarray:
    """The place of each view that is `stored`, bool (N, K), when they lie in order: int32 (N, K), -1 for the others."""
    return np.where(stored, np.cumsum(stored).reshape(stored.shape) - 1, -1).astype(np.int32)


class StoredCrops(NamedTuple):
    """Logits of a batch in their stored form: values (B, h, w, C), and for uint8 their scale (B, h, 2, C)."""

    values: Tensor
    scale: Tensor | None = None

    def floats(self, device: torch.device) -> Tensor:
        """The logits, float32 (B, C, h, w) in channels-last memory on `device`; bytes travel in their stored form."""
        logits = self.values.to(device, non_blocking=True).float()
        if self.scale is not None:
            offset, step = self.scale.to(device, non_blocking=True).float().split(1, dim=2)
            logits = logits.mul_(step).add_(offset)
        return logits.permute(0, 3, 1, 2)

    def pinned(self) -> StoredCrops:
        """The same in page-locked memory."""
        return StoredCrops(*(part if part is None else part.pin_memory() for part in self))


class StoredLogits:
    """The logits of one folder, mapped. Crops of `grid` cells are cut from them: whole views, or windows of frames."""

    def __init__(
        self,
        logits: np.ndarray,
        scale: np.ndarray | None,
        grid: tuple[int, int],
        stride: int,
        rows: np.ndarray | None = None,
    ) -> None:
        """Read from `logits` at `stride` pixels per cell.

        Args:
            logits: (N, K, h, w, C) of views, (N, Hs, Ws, C) of frames, or (M, h, w, C) of the views that `rows` places.
            scale: for uint8 only.
            rows: int (N, K), -1 where a view is not stored.
        """
        self.grid, self.stride = grid, stride
        if rows is None and logits.ndim == 5:
            rows = rows_of(np.ones(logits.shape[:2], bool))
        self.rows = None if rows is None else np.asarray(rows)  # None for whole frames
        self.arrays = [part.reshape(-1, *part.shape[-3:]) for part in (logits, scale) if part is not None]

    @classmethod
    def open(cls, folder: Path, arrays: dict, grid: tuple[int, int], stride: int) -> StoredLogits:
        """Map the files in `folder` and compare them with `arrays`, what `LogitsWriter` said of them.

        Raises:
            InputError: a file is missing or cut short, or holds something else than was written.
        """
        opened = {name: open_array(folder / name, _REMEDY) for name in (LOGITS, SCALE, ROWS) if name in arrays}
        for name, array in opened.items():
            if (found := _described(array.dtype, array.shape)) != arrays[name]:
                raise InputError(f"{folder / name}: holds {_worded(found)}, its manifest says {_worded(arrays[name])}")
        # Bytes without their scale would be taken for logits.
        if LOGITS not in opened or (SCALE in opened) != (opened[LOGITS].dtype == np.uint8):
            raise InputError(f"{folder}: its manifest describes {', '.join(opened) or 'no arrays'} alone; {_REMEDY}")
        rows, stored = opened.get(ROWS), len(opened[LOGITS])
        if rows is not None and not np.array_equal(np.sort(rows[rows >= 0]), np.arange(stored)):
            raise InputError(f"{folder / ROWS}: does not name each of the {stored} stored views once; {_REMEDY}")
        return cls(opened[LOGITS], opened.get(SCALE), grid, stride, rows)

    @property
    def lacking(self) -> np.ndarray | None:
        """Which views are not stored, bool (N, K); None where none is lacking."""
        return None if self.rows is None or (self.rows >= 0).all() else self.rows < 0

    def cut(self, plan: BatchPlan, origins: np.ndarray) -> StoredCrops:
        """The stored logits of the planned crops, mirrored where the plan flips; `origins` (B, 2) in pixels."""
        frames, cells = self._place(plan, origins)
        values = np.empty((len(frames), *self.grid, self.arrays[0].shape[-1]), self.arrays[0].dtype)
        crops = [torch.from_numpy(cut(self.arrays[0], frames, cells, plan.flips, self.grid, values))]
        for scale in self.arrays[1:]:  # a row keeps its scale when it is turned round
            size, rows = (self.grid[0], 2), cells * (1, 0)
            unflipped = np.zeros(len(frames), bool)
            out = np.empty((len(frames), *size, scale.shape[-1]), scale.dtype)
            crops.append(torch.from_numpy(cut(scale, frames, rows, unflipped, size, out)))
        return StoredCrops(*crops)

    def will_read(self, plan: BatchPlan, origins: np.ndarray) -> int:
        """Ask the system for what `cut` will read; the bytes that this spans."""
        frames, cells = self._place(plan, origins)
        return sum(will_read(array, frames, cells[:, 0], self.grid[0]) for array in self.arrays)

    def release(self) -> None:
        """Give back the memory of what was read."""
        for array in self.arrays:
            release(array)

    def _place(self, plan: BatchPlan, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the arrays (M, ...) each crop lies: its frame or view (B,), and its top-left cell (B, 2)."""
        if self.rows is None:
            return plan.frames, origins // self.stride
        return self.rows[plan.frames, plan.views], np.zeros_like(origins)


class LogitsWriter:
    """Writes logits crop after crop into a folder, as float32, float16 or uint8.

    Bytes are appended, not mapped: memory stays flat, and a full disk is an OSError.
    """

    def __init__(self, folder: Path, dtype: str, shape: tuple[int, ...], rows: np.ndarray | None = None) -> None:
        """Begin the files of logits of `shape` (N, K, h, w, C), (N, h, w, C), or (M, h, w, C) of views in `rows`."""
        shapes = {LOGITS: (np.dtype(dtype), shape)}
        if dtype == "uint8":
            shapes[SCALE] = (np.dtype(np.float16), (*shape[:-2], 2, shape[-1]))
        self.arrays = {name: _described(*described) for name, described in shapes.items()}
        self.dtype, self.shape = dtype, shape
        self._files = {name: (folder / name).open("wb") for name in shapes}
        for name, (stored, whole) in shapes.items():
            header = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": whole}
            np.lib.format.write_array_header_1_0(self._files[name], header)
        if rows is not None:
            np.save(folder / ROWS, rows)
            self.arrays[ROWS] = _described(rows.dtype, rows.shape)

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, logits_BhwC: np.ndarray) -> np.ndarray:
        """Write the next float32 crops; whether each is finite as stored, bool (B,)."""
        if self.dtype == "uint8":
            parts = quantised(logits_BhwC)
        else:
            with np.errstate(over="ignore"):
                parts = (logits_BhwC.astype(self.dtype),)
        for file, part in zip(self._files.values(), parts, strict=True):
            file.write(np.ascontiguousarray(part).data)
        return np.isfinite(parts[-1]).reshape(len(logits_BhwC), -1).all(1)


def _described(dtype: np.dtype, shape: tuple[int, ...]) -> dict:
    return {"dtype": str(dtype), "shape": list(shape)}


def _worded(described: object) -> str:
    if isinstance(described, dict) and described.keys() == {"dtype", "shape"}:
        return f"{described['dtype']} {described['shape']}"
    return f"{described!r:.100}"
