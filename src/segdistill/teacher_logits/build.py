"""Run the teacher once over the crops or frames that students use, and store its logits (see `data.teacher_cache`).

Shapes: B crops, N frames, K views, M stored views, H/W pixels, h/w cells of the stored grid, C classes.
"""

from __future__ import annotations

import contextlib
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
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.data.arrays import drop_pages
from segdistill.data.prepared import PreparedData, Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.teacher_cache import (
    FEATURE_STRIDE,
    FEATURES,
    FEATURES_SCALE,
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
from segdistill.nets.device import Compute, TorchPredictor, device_of
from segdistill.nets.features import HasFeatures
from segdistill.nets.resize import upsample
from segdistill.params.model import Params, TeacherLogitsParams, ViewLimitParams
from segdistill.paths import METRICS, TEACHER, TEACHER_LOGITS, TEACHER_WEIGHTS, VAL_CLASSES
from segdistill.teacher.model import Teacher, TrainFrameTeacher, open_teacher
from segdistill.teacher_logits.accuracy import TeacherAccuracy
from segdistill.teacher_logits.features import SAMPLE_VIEWS, FeatureStore, Projection, fit_projection
from segdistill.teacher_logits.overlap import Overlap

# Views on which the teacher's symmetry is measured, evenly spread.
MIRRORED_VIEWS = 8
# `teacher_logits.mirrored: auto` stores the mirrored views of a teacher that gives more of their cells another class.
# Moving a crop by one cell changes about as many (docs/design.md).
MAX_CHANGED_SHARE = 0.05
# The frame of each (B,), images uint8 (B, H, W, 3), and labels uint8 (B, H, W).
Crops = tuple[np.ndarray, np.ndarray, np.ndarray]
_LEVELS = 255


class LogitsOf(Protocol):
    """A teacher."""

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w) of uint8 images (B, H, W, 3)."""


def teacher_logits(params: Params, kind: str) -> None:
    """Build data/teacher_logits/KIND from models/teacher, and metrics/teacher_logits/KIND*, as the stage does."""
    data, logits = PreparedData.open(), params.teacher_logits
    crop_px, scale_range = params.distill.crop_px, params.distill.scale_range
    data.check_crop("distill", crop_px, scale_range)
    spec = ViewSpec.of(data, crop_px, logits.views, logits.stride, params.seed, scale_range)
    accuracy, compute = TeacherAccuracy(data, logits.stride), device_of(params.compute)
    build_cache(kind, TEACHER_LOGITS / kind, data.train, spec, logits, compute, len(data.table), accuracy)
    accuracy.write(METRICS / "teacher_logits", kind)


def build_cache(
    kind: str,
    out: Path,
    split: Split,
    spec: ViewSpec,
    params: TeacherLogitsParams,
    compute: Compute,
    classes: int | None = None,
    accuracy: TeacherAccuracy | None = None,
) -> None:
    """Write the folder of one kind from `models/teacher`, atomically; count what is stored in `accuracy`.

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
    learned_from = TrainFrameTeacher(TEACHER, compute, teacher, len(split))
    if kind == "online" and learned_from.cross_fit:
        raise UserError("teacher_logits.kinds: found online; a cross-fitted teacher is more than one network")
    if accuracy is not None:
        accuracy.read_val()  # before hours of work
    is_views = kind == "views"
    limit = params.limit_views_to if is_views else None
    mirrored, mirror_error = False, None
    projection = None
    if is_views:
        if params.feature_channels:
            projection = feature_projection(teacher, learned_from, split, spec, params)
        mirror_error = measure_mirror_error(teacher.predict, split, spec)
        mirrored = _stores_mirrored(params.mirrored, mirror_error)
    with atomic_directory(out) as folder:
        arrays: dict[str, ArraySpec] = {}
        if kind == "online":
            shutil.copyfile(TEACHER / TEACHER_WEIGHTS, folder / TEACHER_WEIGHTS)
        else:
            # Which views are stored, bool (N, K), or (N, 2 K) with the mirrored ones; None is all of them, or frames.
            stored = None if limit is None else np.tile(views_drawn_by(spec, limit), 1 + mirrored)
            crops = _view_crops(split, spec, stored, params.batch_size, mirrored) if is_views else _whole_frames(split)
            shape = stored_shape(kind, spec, teacher.classes, stored, mirrored)
            rows = None if stored is None else rows_of(stored)
            with contextlib.ExitStack() as files:
                writer = files.enter_context(LogitsWriter(folder, params.dtype, shape, rows))
                with_features: FeatureStore | None = None
                if projection is not None:
                    assert isinstance(teacher.predict, TorchPredictor)
                    grid = stored_grid(spec.crop_px, FEATURE_STRIDE)
                    of_features = (*shape[:-3], *grid, params.feature_channels)
                    features = LogitsWriter(folder, "uint8", of_features, names=(FEATURES, FEATURES_SCALE))
                    with_features = FeatureStore(teacher.predict, projection, files.enter_context(features).append)
                    arrays |= features.arrays
                *lead, height, width, _ = shape

                def store(frames: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
                    finite = writer.append(logits)
                    if not finite.all():
                        name = split.names[frames[finite.argmin()]]
                        found = f"teacher: a logit of frame {name} is not finite as {params.dtype}"
                        raise UserError(f"{found}; no cache written")
                    if accuracy is not None:
                        accuracy.add(frames, labels, logits)

                with (
                    Progress("teacher-logits", math.prod(lead), unit="crop") as progress,
                    Overlap(active=compute.device.type == "cuda") as overlap,
                ):
                    for frames, images, labels in overlap.ahead(crops):
                        logits = logits_on_grid(with_features or learned_from.of(frames), images, (height, width))
                        overlap.then(store, frames, labels, logits)
                        progress.advance(len(images))
            arrays = writer.arrays | arrays
            if accuracy is not None:
                accuracy.finish(learned_from)
        shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
        limit_facts = None if limit is None else limit.model_dump()
        facts = (teacher_sha256(TEACHER), arrays, limit_facts, mirrored, mirror_error, learned_from.cross_fit)
        made = None if projection is None else projection.facts
        Manifest(kind, spec, params.dtype, *facts, made).write(folder)


def measure_mirror_error(teacher: LogitsOf, split: Split, spec: ViewSpec) -> dict[str, float]:
    """Return how far the teacher on mirrored views is from its mirrored logits, as in `Manifest`.

    Convolutions with a stride sample other pixels of a mirrored image, and position embeddings differ left and right.
    """
    grid = stored_grid(spec.crop_px, spec.stride)
    chosen, divergences, changed = _spread(spec, MIRRORED_VIEWS), [], []
    for _, images, _ in _view_crops(split, spec, chosen, batch_size=1, mirrored=False):
        given = torch.from_numpy(logits_on_grid(teacher, images, grid)).flip(2)
        exact = torch.from_numpy(logits_on_grid(teacher, np.ascontiguousarray(images[:, :, ::-1]), grid))
        log_exact = exact.log_softmax(-1)
        divergences.append((log_exact.exp() * (log_exact - given.log_softmax(-1))).sum(-1).mean().item())
        changed.append((exact.argmax(-1) != given.argmax(-1)).float().mean().item())
    mean_kl, changed_share = (float(np.mean(values)) for values in (divergences, changed))
    return {"views": len(changed), "mean_kl": mean_kl, "changed_share": changed_share}


def _spread(spec: ViewSpec, views: int) -> np.ndarray:
    """Return `views` of all views, evenly spread, bool (N, K)."""
    chosen = np.zeros(spec.frames * spec.views, bool)
    chosen[np.linspace(0, len(chosen) - 1, views).astype(int)] = True
    return chosen.reshape(spec.frames, spec.views)


def feature_projection(
    teacher: Teacher, learned_from: TrainFrameTeacher, split: Split, spec: ViewSpec, params: TeacherLogitsParams
) -> Projection:
    """Return the projection of the features that are stored, fitted on some of the views, and log what it keeps.

    Raises:
        UserError: the teacher is not one torch network, or has no features, or too few; or crops are no whole cells.
    """
    predict, found = teacher.predict, f"teacher_logits.feature_channels: found {params.feature_channels}"
    if learned_from.cross_fit:
        raise UserError(f"{found}; a cross-fitted teacher is more than one torch network, and allowed is 0")
    if not isinstance(predict, TorchPredictor):
        raise UserError(f"{found}; {teacher.description} is more than one torch network, and allowed is 0")
    if not isinstance(predict.net, HasFeatures):
        raise UserError(f"{found}; {teacher.description} has no method features_and_logits, and allowed is 0")
    if any(side % FEATURE_STRIDE for side in spec.crop_px):  # else a flip would move features by a part of a cell
        raise UserError(f"{found} with distill.crop_px {list(spec.crop_px)}; allowed are multiples of {FEATURE_STRIDE}")
    sample = _view_crops(split, spec, _spread(spec, SAMPLE_VIEWS), params.batch_size, mirrored=False)
    projection = fit_projection(predict, (images for _, images, _ in sample), params.feature_channels)
    logger.info(
        "teacher-logits: %d of %d feature channels keep %.1f%% of the variance",
        params.feature_channels,
        len(projection.mean),
        100 * projection.variance_share,
    )
    return projection


def _stores_mirrored(wanted: str | bool, error: dict[str, float]) -> bool:
    """Return whether to store the mirrored views, and log why."""
    mirrored = error["changed_share"] > MAX_CHANGED_SHARE if wanted == "auto" else bool(wanted)
    logger.info(
        "teacher-logits: on mirrored views the teacher differs from its mirrored logits by a mean KL of %.4f and in "
        "the class of %.1f%% of the cells; flipped crops get %s",
        error["mean_kl"],
        100 * error["changed_share"],
        "its logits of the mirrored views" if mirrored else "the mirrored logits (teacher_logits.mirrored)",
    )
    return mirrored


def views_drawn_by(spec: ViewSpec, limit: ViewLimitParams) -> np.ndarray:
    """Return the views of `spec` that trainings within `limit` draw with its seed, bool (N, K)."""
    drawn = np.zeros((spec.frames, spec.views), bool)
    for phase, steps in limit.steps.items():
        drawn |= BatchSampler(spec.seed, phase, *drawn.shape, limit.batch_size, 0.0, 0.0).drawn(steps)
    return drawn


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


def _view_crops(
    split: Split, spec: ViewSpec, stored: np.ndarray | None, batch_size: int, mirrored: bool
) -> Iterator[Crops]:
    """Yield the views that are `stored`, bool (N, K), or (N, 2 K) with the `mirrored` ones, or all, in order."""
    if stored is None:
        stored = np.ones((spec.frames, spec.views * (1 + mirrored)), bool)
    frames, views = np.nonzero(stored)
    flips, views = views >= spec.views, views % spec.views
    origins, sizes = spec.origins()[frames, views], spec.sizes()[frames, views]
    for first in range(0, len(frames), batch_size):
        chosen = slice(first, first + batch_size)
        images = np.empty((len(frames[chosen]), *spec.crop_px, 3), np.uint8)
        labels = np.empty((len(frames[chosen]), *spec.crop_px), np.uint8)
        for source, out in ((split.images, images), (split.labels, labels)):
            crop(source, frames[chosen], origins[chosen], flips[chosen], sizes[chosen], out)
            drop_pages(source)
        yield frames[chosen], images, labels


def _whole_frames(split: Split) -> Iterator[Crops]:
    for frame in range(len(split)):
        images, labels = (np.array(source[frame : frame + 1]) for source in (split.images, split.labels))
        yield np.array([frame]), images, labels
        drop_pages(split.images)
        drop_pages(split.labels)


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
    """Write logits, or features, crop after crop into a folder, as float32, float16 or uint8.

    Bytes are appended, not mapped, so memory stays flat and a full disk is an OSError.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str,
        shape: tuple[int, ...],
        rows: np.ndarray | None = None,
        names: tuple[str, str] = (LOGITS, SCALE),
    ) -> None:
        """Begin the files of logits of `shape` (N, K, h, w, C), (N, h, w, C), or (M, h, w, C) of views in `rows`."""
        values, scale = names
        self.arrays = {values: ArraySpec(dtype, tuple(shape))}
        if dtype == "uint8":
            self.arrays[scale] = ArraySpec("float16", (*shape[:-2], 2, shape[-1]))
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
