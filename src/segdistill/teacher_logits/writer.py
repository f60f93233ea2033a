"""Writing stored logits and features: their shape, their 8-bit form, and a writer of one shard.

Shapes: B crops, N frames, K views, M stored views, h/w cells of the stored grid, C classes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segdistill.data.sampling import ViewSpec
from segdistill.data.shards import shard_file
from segdistill.data.teacher_cache import LOGITS, SCALE, ArraySpec, stored_grid

_LEVELS = 255


def stored_shape(
    kind: str, spec: ViewSpec, classes: int, stored: np.ndarray | None = None, mirrored: bool = False
) -> tuple[int, ...]:
    """Return the shape of the stored logits.

    (N, K, h, w, C) of `views`, (N, 2 K, h, w, C) with the mirrored ones, or (M, h, w, C) of the M that are `stored`;
    (N, h, w, C) of the whole frames of `frame`.
    """
    grid = stored_grid(spec.crop_px if kind == "views" else spec.frame_px, spec.stride)
    if kind != "views":
        return (spec.frames, *grid, classes)
    views = (spec.frames, spec.views * (1 + mirrored)) if stored is None else (int(stored.sum()),)
    return (*views, *grid, classes)


def quantize(logits_BhwC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 logits as uint8 (B, h, w, C) and their scale float16 (B, h, 2, C): offset, then step.

    256 levels span the range of each row and class, so that no logit is off by more than half a step. Logits that are
    not finite, or beyond float16, give a scale that is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        smallest, largest = logits_BhwC.min(2), logits_BhwC.max(2)
        offset = smallest.astype(np.float16)
        # Rounded outwards: the levels then cover the range to its ends.
        offset = np.where(offset > smallest, np.nextafter(offset, np.float16(-np.inf)), offset)
        range_BhC = largest - offset.astype(np.float32)
        step = (range_BhC / _LEVELS).astype(np.float16)
        step = np.where(step.astype(np.float32) * _LEVELS < range_BhC, np.nextafter(step, np.float16(np.inf)), step)
        scale = np.stack([offset, step], axis=2)
        divisor = np.where(step > 0, step, 1).astype(np.float32)[:, :, None]
        stored = np.rint((logits_BhwC - offset.astype(np.float32)[:, :, None]) / divisor)
        return np.nan_to_num(stored).clip(0, _LEVELS).astype(np.uint8), scale


class LogitsWriter:
    """Write a shard of logits, or of features, crop after crop into a folder, as float32, float16 or uint8.

    Bytes are appended, not mapped, so memory stays flat and a full disk is an OSError.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        shape: tuple[int, ...],
        shard: int = 0,
        names: tuple[str, str] = (LOGITS, SCALE),
    ) -> None:
        """Begin a shard of logits of `shape` (N, K, h, w, C), (N, h, w, C), or (M, h, w, C) of some of the views."""
        values, scale = (shard_file(name, shard) for name in names)
        self.arrays = {values: ArraySpec(dtype, tuple(shape))}
        if dtype == "uint8":
            self.arrays[scale] = ArraySpec("float16", (*shape[:-2], 2, shape[-1]))
        self.dtype, self.grid = dtype, (shape[-3], shape[-2])
        self._files = {name: (folder / name).open("wb") for name in self.arrays}
        for name, array in self.arrays.items():
            descr = np.lib.format.dtype_to_descr(np.dtype(array.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(self._files[name], header)

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def append(self, logits_BhwC: np.ndarray) -> np.ndarray:
        """Write the next float32 crops; return whether each is finite as stored, bool (B,)."""
        if self.dtype == "uint8":
            parts: tuple[np.ndarray, ...] = quantize(logits_BhwC)
        else:
            with np.errstate(over="ignore"):
                parts = (logits_BhwC.astype(self.dtype),)
        for file, part in zip(self._files.values(), parts, strict=True):
            file.write(np.ascontiguousarray(part).data)
        return np.isfinite(parts[-1]).reshape(len(logits_BhwC), -1).all(1)
