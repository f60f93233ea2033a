"""Run the teacher once over the crops or frames that students use, and store its logits (see `data.teacher_cache`)."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.core.provenance import code_hash, package_versions, settings_hash
from segdistill.core.scratch import ScratchFolder
from segdistill.data.arrays import open_array
from segdistill.data.prepared import PreparedData, Split
from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import ROWS, ArraySpec, Manifest, is_ensemble, rows_of, stored_grid, teacher_sha256
from segdistill.nets.device import Compute, device_of
from segdistill.parallel import ranks
from segdistill.params.model import Params, TeacherLogitsParams
from segdistill.paths import LOGITS_BUILDS, METRICS, SCRATCH, TEACHER, TEACHER_LOGITS, TEACHER_WEIGHTS, VAL_CLASSES
from segdistill.teacher.model import Teacher, TrainFrameTeacher, open_teacher
from segdistill.teacher_logits.accuracy import TeacherAccuracy
from segdistill.teacher_logits.features import feature_projection
from segdistill.teacher_logits.shards import COUNTS, Contents, LogitsOf, ShardBuilder, logits_on_grid
from segdistill.teacher_logits.windows import (
    evenly_spaced_views,
    read_crops,
    view_windows,
    views_drawn_by,
    whole_frames,
)

# Views on which the teacher's symmetry is measured, evenly spread.
MIRRORED_VIEWS = 8
# `teacher_logits.mirrored: auto` stores the mirrored views of a teacher that gives more of their cells another class.
# Moving a crop by one cell changes about as many (docs/design.md).
MAX_CHANGED_SHARE = 0.05


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
        if ranks.is_first():
            with atomic_directory(out) as folder:
                for name in (TEACHER_WEIGHTS, VAL_CLASSES):
                    shutil.copyfile(TEACHER / name, folder / name)
                Manifest(kind, spec, params.dtype, teacher_sha256(TEACHER), {}).write(folder)
        return

    contents = _contents(kind, teacher, learned_from, split, spec, params)
    shards = ShardBuilder(contents, teacher, learned_from, split, spec, params, compute, accuracy)
    projection = contents.projection
    key = settings_hash(
        *(kind, spec.facts(), params.model_dump(exclude={"kinds"}), teacher_sha256(TEACHER), contents.mirrored),
        # Another processor may fit other components, which do not go together with those of finished shards.
        None if projection is None else hashlib.sha256(projection.basis.numpy().tobytes()).hexdigest(),
        accuracy is not None,
        (package_versions("torch", "numpy", "pillow", "onnxruntime"), code_hash()),
        (str(compute.device), str(compute.dtype), compute.threads),
    )
    scratch = ScratchFolder(f"{LOGITS_BUILDS}/{kind}", key, SCRATCH)
    with contextlib.ExitStack() as held:
        if ranks.is_first():
            held.enter_context(scratch)
        folders = [scratch.folder / f"{number:05d}" for number in range(len(shards.frames))]
        # By a build that was stopped.
        finished = ranks.by_first(lambda: [shard.is_dir() for shard in folders])
        if not ranks.is_first():
            for number, is_built in enumerate(finished):
                if not is_built:
                    assert not list(shards.results(number)), "the first rank gets all results"
            return
        if any(finished):
            logger.info("teacher-logits: continues; %d of %d shards are built", sum(finished), len(folders))
        done = int(np.diff(shards.starts)[finished].sum())
        with Progress("teacher-logits", shards.starts[-1], done, unit="crop") as progress:
            for number, shard in enumerate(folders):
                if not finished[number]:
                    # The folder gets its name when all of its files are on the disk: what a kill leaves is no shard.
                    with atomic_directory(shard) as folder:
                        shards.write(folder, number, progress)
                elif accuracy is not None:
                    accuracy.load_shard(shard / COUNTS, shards.frames[number])
        if accuracy is not None:
            accuracy.finish(learned_from)

        limit = params.limit_views_to if kind == "views" else None
        with atomic_directory(out) as folder:
            arrays: dict[str, ArraySpec] = {}
            for file in (file for shard in folders for file in sorted(shard.glob("*.npy"))):
                arrays[file.name] = ArraySpec.of(open_array(file, f"delete {file.parent}, to build it again"))
                try:
                    (folder / file.name).hardlink_to(file)
                except OSError:  # the two are on different disks
                    shutil.copyfile(file, folder / file.name)
            if contents.stored is not None:
                np.save(folder / ROWS, rows_of(contents.stored))
                arrays[ROWS] = ArraySpec.of(rows_of(contents.stored))
            shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
            Manifest(
                kind,
                spec,
                params.dtype,
                teacher_sha256(TEACHER),
                arrays,
                limit_views_to=None if limit is None else limit.model_dump(),
                mirrored=contents.mirrored,
                mirror_error=contents.mirror_error,
                cross_fit=learned_from.cross_fit,
                features=None if projection is None else projection.facts,
            ).write(folder)
        scratch.clear()


def _contents(
    kind: str,
    teacher: Teacher,
    learned_from: TrainFrameTeacher,
    split: Split,
    spec: ViewSpec,
    params: TeacherLogitsParams,
) -> Contents:
    """Return what the cache of `views` or `frame` will hold; measure on some views what depends on the teacher."""
    if kind == "frame":
        return Contents(kind, whole_frames(spec), spec.frame_px, batch_size=1)
    projection = None
    if params.feature_channels:
        projection = ranks.by_first(lambda: feature_projection(teacher, learned_from, split, spec, params))
    mirror_error = ranks.by_first(lambda: measure_mirror_error(teacher.predict, split, spec))
    mirrored = bool(params.mirrored)
    if params.mirrored == "auto":
        mirrored = mirror_error["changed_share"] > MAX_CHANGED_SHARE
    logger.info(
        "teacher-logits: on mirrored views the teacher differs from its mirrored logits by a mean KL of %.4f and in "
        "the class of %.1f%% of the cells; flipped crops get %s",
        mirror_error["mean_kl"],
        100 * mirror_error["changed_share"],
        "its logits of the mirrored views" if mirrored else "the mirrored logits (teacher_logits.mirrored)",
    )
    stored = None
    if params.limit_views_to is not None:
        stored = np.tile(views_drawn_by(spec, params.limit_views_to), 1 + mirrored)
    return Contents(
        kind,
        view_windows(spec, stored, mirrored),
        spec.crop_px,
        params.batch_size,
        stored=stored,
        mirrored=mirrored,
        mirror_error=mirror_error,
        projection=projection,
    )


def measure_mirror_error(teacher: LogitsOf, split: Split, spec: ViewSpec) -> dict[str, float]:
    """Return how far the teacher on mirrored views is from its mirrored logits, as in `Manifest`.

    Convolutions with a stride sample other pixels of a mirrored image, and position embeddings differ left and right.
    """
    grid = stored_grid(spec.crop_px, spec.stride)
    chosen, divergences, changed = evenly_spaced_views(spec, MIRRORED_VIEWS), [], []
    for _, images, _ in read_crops(split, view_windows(spec, chosen), spec.crop_px, batch_size=1):
        given = torch.from_numpy(logits_on_grid(teacher, images, grid)).flip(2)
        exact = torch.from_numpy(logits_on_grid(teacher, np.ascontiguousarray(images[:, :, ::-1]), grid))
        log_exact = exact.log_softmax(-1)
        divergences.append((log_exact.exp() * (log_exact - given.log_softmax(-1))).sum(-1).mean().item())
        changed.append((exact.argmax(-1) != given.argmax(-1)).float().mean().item())
    mean_kl, changed_share = (float(np.mean(values)) for values in (divergences, changed))
    return {"views": len(changed), "mean_kl": mean_kl, "changed_share": changed_share}
