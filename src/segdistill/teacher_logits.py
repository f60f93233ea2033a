"""teacher-logits: run the teacher once over what students will be shown, and store what it says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from segdistill.base.errors import InputError
from segdistill.base.files import atomic_directory, write_json
from segdistill.base.params import TeacherLogitsParams
from segdistill.frames.dataset import Split
from segdistill.frames.mapped import release
from segdistill.frames.transforms import cut
from segdistill.logits.stored_logits import LogitsWriter, rows_of
from segdistill.logits.teacher_cache import (
    MANIFEST,
    TEACHER,
    VAL_CLASSES,
    WEIGHTS,
    drawn_views,
    is_composite,
    origins_of,
    stored_shape,
    teacher_sha256,
)
from segdistill.nets.compute import Compute
from segdistill.nets.resize import upsample
from segdistill.progress import Progress
from segdistill.teachers.composite_teacher import Member
from segdistill.teachers.teacher_folder import Teacher, open_teacher

Crops = tuple[np.ndarray, np.ndarray]  # the frame of each (B,), and images uint8 (B, H, W, 3)


def build_cache(
    kind: str,
    out: Path,
    split: Split,
    facts: dict,
    params: TeacherLogitsParams,
    compute: Compute,
    classes: int | None = None,
) -> None:
    """Write the folder of one kind from `models/teacher`, atomically.

    Raises:
        InputError: the teacher is of other than `classes` classes, where these are given, gives a logit that is not
            finite in the stored precision, or is no single torch network where `online` needs one.
    """
    teacher = open_teacher(TEACHER, compute)
    if classes not in (None, teacher.classes):
        raise InputError(
            f"{TEACHER}: gives {teacher.classes} classes, {classes} are needed; run: dvc repro teacher-check"
        )
    manifest = facts | {"kind": kind, "dtype": params.dtype, "teacher_sha256": teacher_sha256(TEACHER)}
    if kind == "online" and is_composite(TEACHER):
        raise InputError(f"teacher_logits.kinds: found online; {teacher.described} is more than one torch network")
    with atomic_directory(out) as folder:
        if kind == "online":
            shutil.copyfile(TEACHER / WEIGHTS, folder / WEIGHTS)
        else:
            manifest |= _write_logits(kind, folder, split, facts, params, teacher)
        shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
        write_json(folder / MANIFEST, manifest)


def _write_logits(
    kind: str, folder: Path, split: Split, facts: dict, params: TeacherLogitsParams, teacher: Teacher
) -> dict:
    """Run the teacher over views, or over whole frames; what the manifest says of the arrays."""
    drawn_by = params.drawn_by if kind == "views" else None
    drawn = None if drawn_by is None else drawn_views(facts, drawn_by)
    if kind == "views":
        wanted = np.ones((facts["frames"], facts["views"]), bool) if drawn is None else drawn
        crops = _view_crops(split, facts, wanted, params.batch_size)
    else:
        crops = _whole_frames(split)
    shape = stored_shape(kind, facts, teacher.classes, drawn)
    with LogitsWriter(folder, params.dtype, shape, None if drawn is None else rows_of(drawn)) as writer:
        _run_teacher(teacher.predict, crops, writer, split.names)
    return {"arrays": writer.arrays} | ({} if drawn_by is None else {"drawn_by": drawn_by.model_dump()})


def _run_teacher(teacher: Member, crops: Iterator[Crops], writer: LogitsWriter, names: tuple[str, ...]) -> None:
    """Write the logits of all `crops` of the frames `names`."""
    *lead, height, width, _ = writer.shape
    with Progress("teacher-logits", math.prod(lead), unit="crop") as progress:
        for frames, images in crops:
            finite = writer.append(logits_on_grid(teacher, images, (height, width)))
            if not finite.all():
                frame = names[frames[finite.argmin()]]
                raise InputError(f"teacher: a logit of frame {frame} is not finite as {writer.dtype}; no cache written")
            progress.advance(len(images))


def _view_crops(split: Split, facts: dict, wanted: np.ndarray, batch: int) -> Iterator[Crops]:
    """The views that are `wanted`, bool (N, K), in order."""
    frames, views = np.nonzero(wanted)
    corners = origins_of(facts)[frames, views]
    for first in range(0, len(frames), batch):
        chosen = slice(first, first + batch)
        images = np.empty((len(frames[chosen]), *facts["crop_px"], 3), np.uint8)
        unflipped = np.zeros(len(images), bool)
        yield frames[chosen], cut(split.images, frames[chosen], corners[chosen], unflipped, facts["crop_px"], images)
        release(split.images)


def _whole_frames(split: Split) -> Iterator[Crops]:
    for frame in range(len(split)):
        yield np.array([frame]), np.array(split.images[frame : frame + 1])
        release(split.images)


@torch.inference_mode()
def logits_on_grid(teacher: Member, images_BHW3: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The teacher's logits float32 (B, *grid, C) of uint8 crops, resized to the grid where its own is another."""
    logits = teacher.logits(images_BHW3)
    if tuple(logits.shape[-2:]) != tuple(grid):
        logits = upsample(logits, grid)
    return logits.permute(0, 2, 3, 1).cpu().numpy()
