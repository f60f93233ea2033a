"""Run the teacher once over the crops or frames that students use, and store its logits (see `data.teacher_cache`).

Shapes: B crops, N frames, K views, M stored views, H/W pixels, h/w cells of the stored grid, C classes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory
from segdistill.core.progress import Progress
from segdistill.data.arrays import drop_pages
from segdistill.data.prepared import PreparedData, Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.teacher_cache import (
    LOGITS,
    ROWS,
    SCALE,
    ArraySpec,
    Manifest,
    is_ensemble,
    rows_of,
    stored_grid,
    teacher_sha256,
)
from segdistill.data.transforms import crop
from segdistill.nets.device import Compute, device_of
from segdistill.nets.resize import upsample
from segdistill.params.model import Params, TeacherLogitsParams, ViewLimitParams
from segdistill.paths import TEACHER, TEACHER_LOGITS, TEACHER_WEIGHTS, VAL_CLASSES
from segdistill.teacher.model import open_teacher

Crops = tuple[np.ndarray, np.ndarray]  # the frame of each (B,), and images uint8 (B, H, W, 3)
_LEVELS = 255


class LogitsOf(Protocol):
    """A teacher."""

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w) of uint8 images (B, H, W, 3)."""


def teacher_logits(params: Params, kind: str) -> None:
    """Build data/teacher_logits/KIND from models/teacher, as the stage does."""
    data, logits = PreparedData.open(), params.teacher_logits
    crop_px, scale_range = params.distill.crop_px, params.distill.scale_range
    data.check_crop("distill", crop_px, scale_range)
    spec = ViewSpec.of(data, crop_px, logits.views, logits.stride, params.seed, scale_range)
    build_cache(kind, TEACHER_LOGITS / kind, data.train, spec, logits, device_of(params.compute), len(data.table))


def build_cache(
    kind: str,
    out: Path,
    split: Split,
    spec: ViewSpec,
    params: TeacherLogitsParams,
    compute: Compute,
    classes: int | None = None,
) -> None:
    """Write the folder of one kind from `models/teacher`, atomically.

    Raises:
        UserError: the teacher has other than `classes` classes, where these are given, or gives a logit that is not
            finite in the stored precision, or is not a single torch network where `online` needs one.
    """
    teacher = open_teacher(TEACHER, compute)
    if classes not in (None, teacher.classes):
        found = f"gives {teacher.classes} classes, {classes} are needed"
        raise UserError(f"{TEACHER}: {found}; run: dvc repro teacher-check")
    if kind == "online" and is_ensemble(TEACHER):
        raise UserError(f"teacher_logits.kinds: found online; {teacher.description} is more than one torch network")
    limit = params.limit_views_to if kind == "views" else None
    with atomic_directory(out) as folder:
        arrays: dict[str, ArraySpec] = {}
        if kind == "online":
            shutil.copyfile(TEACHER / TEACHER_WEIGHTS, folder / TEACHER_WEIGHTS)
        else:
            # Which views are stored, bool (N, K); None is all of them, or whole frames.
            stored = None if limit is None else views_drawn_by(spec, limit)
            is_views = kind == "views"
            crops = _view_crops(split, spec, stored, params.batch_size) if is_views else _whole_frames(split)
            shape = stored_shape(kind, spec, teacher.classes, stored)
            rows = None if stored is None else rows_of(stored)
            with LogitsWriter(folder, params.dtype, shape, rows) as writer:
                *lead, height, width, _ = shape
                with Progress("teacher-logits", math.prod(lead), unit="crop") as progress:
                    for frames, images in crops:
                        finite = writer.append(logits_on_grid(teacher.predict, images, (height, width)))
                        if not finite.all():
                            name = split.names[frames[finite.argmin()]]
                            found = f"teacher: a logit of frame {name} is not finite as {params.dtype}"
                            raise UserError(f"{found}; no cache written")
                        progress.advance(len(images))
            arrays = writer.arrays
        shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
        limit_facts = None if limit is None else limit.model_dump()
        Manifest(kind, spec, params.dtype, teacher_sha256(TEACHER), arrays, limit_facts).write(folder)


def views_drawn_by(spec: ViewSpec, limit: ViewLimitParams) -> np.ndarray:
    """Return the views of `spec` that trainings within `limit` draw with its seed, bool (N, K)."""
    drawn = np.zeros((spec.frames, spec.views), bool)
    for phase, steps in limit.steps.items():
        drawn |= BatchSampler(spec.seed, phase, *drawn.shape, limit.batch_size, 0.0, 0.0).drawn(steps)
    return drawn


def stored_shape(kind: str, spec: ViewSpec, classes: int, stored: np.ndarray | None = None) -> tuple[int, ...]:
    """Return the shape of the stored logits.

    (N, K, h, w, C) of `views`, or (M, h, w, C) of the M that are `stored`; (N, h, w, C) of the whole frames of `frame`.
    """
    grid = stored_grid(spec.crop_px if kind == "views" else spec.frame_px, spec.stride)
    if kind != "views":
        return (spec.frames, *grid, classes)
    return (*((spec.frames, spec.views) if stored is None else (int(stored.sum()),)), *grid, classes)


def _view_crops(split: Split, spec: ViewSpec, stored: np.ndarray | None, batch_size: int) -> Iterator[Crops]:
    """Yield the views that are `stored`, bool (N, K), or all, in order."""
    frames, views = np.nonzero(np.ones((spec.frames, spec.views), bool) if stored is None else stored)
    origins, sizes = spec.origins()[frames, views], spec.sizes()[frames, views]
    for first in range(0, len(frames), batch_size):
        chosen = slice(first, first + batch_size)
        images = np.empty((len(frames[chosen]), *spec.crop_px, 3), np.uint8)
        unflipped = np.zeros(len(images), bool)
        yield frames[chosen], crop(split.images, frames[chosen], origins[chosen], unflipped, sizes[chosen], images)
        drop_pages(split.images)


def _whole_frames(split: Split) -> Iterator[Crops]:
    for frame in range(len(split)):
        yield np.array([frame]), np.array(split.images[frame : frame + 1])
        drop_pages(split.images)


@torch.inference_mode()
def logits_on_grid(teacher: LogitsOf, images_BHW3: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the teacher's logits float32 (B, *grid, C) of uint8 crops, resized where its own grid is another."""
    logits = teacher.logits(images_BHW3)
    if tuple(logits.shape[-2:]) != tuple(grid):
        logits = upsample(logits, grid)
    return logits.permute(0, 2, 3, 1).cpu().numpy()


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
    """Write logits crop after crop into a folder, as float32, float16 or uint8.

    Bytes are appended, not mapped, so memory stays flat and a full disk is an OSError.
    """

    def __init__(self, folder: Path, dtype: str, shape: tuple[int, ...], rows: np.ndarray | None = None) -> None:
        """Begin the files of logits of `shape` (N, K, h, w, C), (N, h, w, C), or (M, h, w, C) of views in `rows`."""
        self.arrays = {LOGITS: ArraySpec(dtype, tuple(shape))}
        if dtype == "uint8":
            self.arrays[SCALE] = ArraySpec("float16", (*shape[:-2], 2, shape[-1]))
        self.dtype, self.shape = dtype, shape
        self._files = {name: (folder / name).open("wb") for name in self.arrays}
        for name, array in self.arrays.items():
            descr = np.lib.format.dtype_to_descr(np.dtype(array.dtype))
            header = {"descr": descr, "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(self._files[name], header)
        if rows is not None:
            np.save(folder / ROWS, rows)
            self.arrays[ROWS] = ArraySpec.of(rows)

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
