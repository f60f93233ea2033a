"""Run the teacher once over the crops or frames that students use, and store its logits (see `data.teacher_cache`).

Shapes: B crops, N frames, K views, M stored views, H/W pixels, h/w cells of the stored grid, C classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.core.provenance import code_hash, package_versions, settings_hash
from segdistill.core.scratch import ScratchFolder
from segdistill.data.arrays import drop_pages, open_array
from segdistill.data.prepared import PreparedData, Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.shards import shard_file, shards_of
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
from segdistill.parallel import ranks
from segdistill.params.model import Params, TeacherLogitsParams, ViewLimitParams
from segdistill.paths import (
    LOGITS_BUILDS,
    METRICS,
    SCRATCH,
    TEACHER,
    TEACHER_LOGITS,
    TEACHER_WEIGHTS,
    VAL_CLASSES,
)
from segdistill.teacher.model import Teacher, TrainFrameTeacher, open_teacher
from segdistill.teacher_logits.accuracy import TeacherAccuracy
from segdistill.teacher_logits.features import SAMPLE_VIEWS, ProjectedFeatures, Projection, fit_projection
from segdistill.teacher_logits.overlap import Overlap

# Views on which the teacher's symmetry is measured, evenly spread.
MIRRORED_VIEWS = 8
# `teacher_logits.mirrored: auto` stores the mirrored views of a teacher that gives more of their cells another class.
# Moving a crop by one cell changes about as many (docs/design.md).
MAX_CHANGED_SHARE = 0.05
# The frame of each (B,), images uint8 (B, H, W, 3), and labels uint8 (B, H, W).
Crops = tuple[np.ndarray, np.ndarray, np.ndarray]
COUNTS = "counts.npz"  # in the folder of a finished shard: what `TeacherAccuracy` counted on it
_LEVELS = 255


class Windows(NamedTuple):
    """M windows in frames: frames (M,), flips bool (M,), corners (M, 2) and sizes (M, 2) in pixels."""

    frames: np.ndarray
    flips: np.ndarray
    origins: np.ndarray
    sizes: np.ndarray


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
    if ranks.is_first():
        accuracy.write(METRICS / "teacher_logits", kind)
    ranks.wait()


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

    Shards are built one after the other in a scratch folder. Those that a stopped build of the same settings has
    finished are kept. With several ranks each runs the teacher on its part of the batches, and the first one writes.

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
    if kind == "online":
        if not ranks.is_first():
            return
        with atomic_directory(out) as folder:
            for name in (TEACHER_WEIGHTS, VAL_CLASSES):
                shutil.copyfile(TEACHER / name, folder / name)
            Manifest(kind, spec, params.dtype, teacher_sha256(TEACHER), {}).write(folder)
        return
    is_views = kind == "views"
    limit = params.limit_views_to if is_views else None
    mirrored, mirror_error = False, None
    projection = None
    if is_views:
        if params.feature_channels:
            projection = ranks.by_first(lambda: feature_projection(teacher, learned_from, split, spec, params))
        mirror_error = ranks.by_first(lambda: measure_mirror_error(teacher.predict, split, spec))
        mirrored = _stores_mirrored(params.mirrored, mirror_error)
    # Which views are stored, bool (N, K), or (N, 2 K) with the mirrored ones; None is all of them, or whole frames.
    stored = None if limit is None else np.tile(views_drawn_by(spec, limit), 1 + mirrored)
    windows = view_windows(spec, stored, mirrored) if is_views else _whole_frames(spec)
    size_px, batch_size = (spec.crop_px, params.batch_size) if is_views else (spec.frame_px, 1)
    shards = shards_of(spec.frames)
    # Windows are in the order of their frames. starts[i] is the first window of shard i.
    starts = np.searchsorted(windows.frames, [0, *(frames.stop for frames in shards)]).tolist()
    key = settings_hash(
        *(kind, spec.facts(), params.model_dump(exclude={"kinds"}), teacher_sha256(TEACHER), mirrored),
        # Another processor may fit other components, which do not go together with those of finished shards.
        None if projection is None else hashlib.sha256(projection.basis.numpy().tobytes()).hexdigest(),
        accuracy is not None,
        (package_versions("torch", "numpy", "pillow", "onnxruntime"), code_hash()),
        (str(compute.device), str(compute.dtype), compute.threads),
    )

    is_cuda = compute.device.type == "cuda"
    with_features: ProjectedFeatures | None = None
    if projection is not None:
        assert isinstance(teacher.predict, TorchPredictor)
        with_features = ProjectedFeatures(teacher.predict, projection)

    def results_of(number: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Run the teacher on a shard; yield of each batch frames, labels, logits and features, on the first rank."""
        own = Windows(*(part[starts[number] : starts[number + 1]] for part in windows))
        grid = stored_grid(size_px, spec.stride)

        def computed() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
            with Overlap(active=is_cuda) as reading:
                for frames, images, labels in reading.ahead(_crops(split, own, size_px, batch_size, shared=True)):
                    logits = logits_on_grid(with_features or learned_from.of(frames), images, grid)
                    yield frames, labels, logits, None if with_features is None else with_features.last

        return ranks.in_order(computed(), -(-len(own.frames) // batch_size))

    def write_shard(folder: Path, number: int, progress: Progress) -> None:
        """Write the files of a shard."""
        frames = shards[number]
        of_shard = None if stored is None else stored[frames.start : frames.stop]
        shape = stored_shape(kind, replace(spec, frames=len(frames)), teacher.classes, of_shard, mirrored)
        with contextlib.ExitStack() as files:
            writer = files.enter_context(LogitsWriter(folder, params.dtype, shape, number))
            if projection is not None:
                of_features = (*shape[:-3], *stored_grid(spec.crop_px, FEATURE_STRIDE), params.feature_channels)
                features_writer = files.enter_context(
                    LogitsWriter(folder, "uint8", of_features, number, (FEATURES, FEATURES_SCALE))
                )

            def store(frames: np.ndarray, labels: np.ndarray, logits: np.ndarray, features: np.ndarray | None) -> None:
                if features is not None and not features_writer.append(features).all():
                    raise UserError("teacher: a feature is not finite as uint8; no cache written")
                finite = writer.append(logits)
                if not finite.all():
                    name = split.names[frames[finite.argmin()]]
                    found = f"teacher: a logit of frame {name} is not finite as {params.dtype}"
                    raise UserError(f"{found}; no cache written")
                if accuracy is not None:
                    accuracy.add(frames, labels, logits)

            with Overlap(active=is_cuda) as writing:
                for result in results_of(number):
                    writing.then(store, *result)
                    progress.advance(len(result[0]))
        if accuracy is not None:
            accuracy.save_shard(folder / COUNTS, frames)

    scratch = ScratchFolder(f"{LOGITS_BUILDS}/{kind}", key, SCRATCH)
    with contextlib.ExitStack() as held:
        if ranks.is_first():
            held.enter_context(scratch)
        folders = [scratch.folder / f"{number:05d}" for number in range(len(shards))]
        # By a build that was stopped.
        finished = ranks.by_first(lambda: [shard.is_dir() for shard in folders])
        if not ranks.is_first():
            for number, is_built in enumerate(finished):
                if not is_built:
                    assert not list(results_of(number)), "the first rank gets all results"
            return
        if any(finished):
            logger.info("teacher-logits: continues; %d of %d shards are built", sum(finished), len(shards))
        with Progress("teacher-logits", starts[-1], int(np.diff(starts)[finished].sum()), unit="crop") as progress:
            for number, shard in enumerate(folders):
                if not finished[number]:
                    # The folder gets its name when all of its files are on the disk: what a kill leaves is no shard.
                    with atomic_directory(shard) as folder:
                        write_shard(folder, number, progress)
                elif accuracy is not None:
                    accuracy.load_shard(shard / COUNTS, shards[number])
        if accuracy is not None:
            accuracy.finish(learned_from)
        with atomic_directory(out) as folder:
            arrays: dict[str, ArraySpec] = {}
            for file in (file for shard in folders for file in sorted(shard.glob("*.npy"))):
                arrays[file.name] = ArraySpec.of(open_array(file, f"delete {file.parent}, to build it again"))
                _link(file, folder / file.name)
            if stored is not None:
                np.save(folder / ROWS, rows_of(stored))
                arrays[ROWS] = ArraySpec.of(rows_of(stored))
            shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
            limit_facts = None if limit is None else limit.model_dump()
            facts = (teacher_sha256(TEACHER), arrays, limit_facts, mirrored, mirror_error, learned_from.cross_fit)
            made = None if projection is None else projection.facts
            Manifest(kind, spec, params.dtype, *facts, made).write(folder)
        scratch.clear()


def _link(file: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the two are on different disks."""
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, target)


def measure_mirror_error(teacher: LogitsOf, split: Split, spec: ViewSpec) -> dict[str, float]:
    """Return how far the teacher on mirrored views is from its mirrored logits, as in `Manifest`.

    Convolutions with a stride sample other pixels of a mirrored image, and position embeddings differ left and right.
    """
    grid = stored_grid(spec.crop_px, spec.stride)
    chosen, divergences, changed = _spread(spec, MIRRORED_VIEWS), [], []
    for _, images, _ in _crops(split, view_windows(spec, chosen), spec.crop_px, batch_size=1):
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
    sample = _crops(split, view_windows(spec, _spread(spec, SAMPLE_VIEWS)), spec.crop_px, params.batch_size)
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


def view_windows(spec: ViewSpec, stored: np.ndarray | None = None, mirrored: bool = False) -> Windows:
    """Return the views that are `stored`, bool (N, K), or (N, 2 K) with the `mirrored` ones, or all, in order."""
    if stored is None:
        stored = np.ones((spec.frames, spec.views * (1 + mirrored)), bool)
    frames, views = np.nonzero(stored)
    flips, views = views >= spec.views, views % spec.views
    return Windows(frames, flips, spec.origins()[frames, views], spec.sizes()[frames, views])


def _whole_frames(spec: ViewSpec) -> Windows:
    frames, corners = np.arange(spec.frames), np.zeros((spec.frames, 2), np.int64)
    return Windows(frames, np.zeros(spec.frames, bool), corners, corners + spec.frame_px)


def _crops(
    split: Split, windows: Windows, size_px: tuple[int, int], batch_size: int, shared: bool = False
) -> Iterator[Crops]:
    """Yield images and labels of `windows`, resized to `size_px`; of `shared` ones, the batches of this rank."""
    firsts: Sequence[int] = range(0, len(windows.frames), batch_size)
    for first in ranks.own(firsts) if shared else firsts:
        frames, flips, origins, sizes = (part[first : first + batch_size] for part in windows)
        images = np.empty((len(frames), *size_px, 3), np.uint8)
        labels = np.empty((len(frames), *size_px), np.uint8)
        for source, out in ((split.images, images), (split.labels, labels)):
            crop(source, frames, origins, flips, sizes, out)
            drop_pages(source)
        yield frames, images, labels


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
