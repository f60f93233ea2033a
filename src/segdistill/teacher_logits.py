"""teacher-logits: run the teacher once over what students will be shown, and store what it says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from segdistill.composite_teacher import Member
from segdistill.compute import Compute
from segdistill.dataset import Split
from segdistill.errors import InputError
from segdistill.files import atomic_directory, write_json
from segdistill.mapped import release
from segdistill.nets.resize import upsample
from segdistill.params import TeacherLogitsParams
from segdistill.progress import Progress
from segdistill.stored_logits import LogitsWriter
from segdistill.teacher_cache import (
    MANIFEST,
    TEACHER,
    VAL_CLASSES,
    WEIGHTS,
    is_composite,
    origins_of,
    stored_shape,
    teacher_sha256,
)
from segdistill.teacher_folder import open_teacher
from segdistill.transforms import cut


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
            shape = stored_shape(kind, facts, teacher.classes)
            crops = _view_crops(split, facts, params.batch_size) if kind == "views" else _whole_frames(split)
            with LogitsWriter(folder, params.dtype, shape) as writer:
                _run_teacher(teacher.predict, crops, writer, split.names)
            manifest["arrays"] = writer.arrays
        shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
        write_json(folder / MANIFEST, manifest)


def _run_teacher(teacher: Member, crops: Iterator[np.ndarray], writer: LogitsWriter, names: tuple[str, ...]) -> None:
    """Write the logits of all `crops`, which are equally many for each frame of `names`."""
    *lead, height, width, _ = writer.shape
    done, total = 0, math.prod(lead)
    with Progress("teacher-logits", total, unit="crop") as progress:
        for images in crops:
            finite = writer.append(logits_on_grid(teacher, images, (height, width)))
            if not finite.all():
                frame = names[(done + int(finite.argmin())) * len(names) // total]
                raise InputError(f"teacher: a logit of frame {frame} is not finite as {writer.dtype}; no cache written")
            done += len(images)
            progress.advance(len(images))


def _view_crops(split: Split, facts: dict, batch: int) -> Iterator[np.ndarray]:
    """The images uint8 (B, H, W, 3) of all views of all frames, in order."""
    corners = origins_of(facts).reshape(-1, 2)
    for first in range(0, len(corners), batch):
        chosen = np.arange(first, min(first + batch, len(corners)))
        images = np.empty((len(chosen), *facts["crop_px"], 3), np.uint8)
        unflipped = np.zeros(len(chosen), bool)
        yield cut(split.images, chosen // facts["views"], corners[chosen], unflipped, facts["crop_px"], images)
        release(split.images)


def _whole_frames(split: Split) -> Iterator[np.ndarray]:
    for first in range(len(split)):
        yield np.array(split.images[first : first + 1])
        release(split.images)


@torch.inference_mode()
def logits_on_grid(teacher: Member, images_BHW3: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The teacher's logits float32 (B, *grid, C) of uint8 crops, resized to the grid where its own is another."""
    logits = teacher.logits(images_BHW3)
    if tuple(logits.shape[-2:]) != tuple(grid):
        logits = upsample(logits, grid)
    return logits.permute(0, 2, 3, 1).cpu().numpy()
