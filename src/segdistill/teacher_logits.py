"""teacher-logits: run the teacher once over what students will be shown, and store what it says."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segdistill.checkpoint import load_net
from segdistill.compute import Compute
from segdistill.dataset import Split
from segdistill.errors import InputError
from segdistill.files import atomic_directory, write_json
from segdistill.mapped import release
from segdistill.nets.resize import upsample
from segdistill.params import TeacherLogitsParams
from segdistill.progress import Progress
from segdistill.provenance import file_sha256
from segdistill.stored_logits import LogitsWriter
from segdistill.teacher_cache import MANIFEST, VAL_CLASSES, WEIGHTS, origins_of, stored_shape
from segdistill.transforms import cut, normalised

TEACHER = Path("models/teacher")


def build_cache(kind: str, out: Path, split: Split, facts: dict, params: TeacherLogitsParams, compute: Compute) -> None:
    """Write the folder of one kind from `models/teacher`, atomically.

    Raises:
        InputError: the teacher gives a logit that is not finite in the stored precision.
    """
    net, net_facts = load_net(TEACHER / WEIGHTS)
    manifest = facts | {
        "kind": kind,
        "dtype": params.dtype,
        "teacher_sha256": file_sha256(TEACHER / WEIGHTS),
    }
    with atomic_directory(out) as folder:
        if kind == "online":
            shutil.copyfile(TEACHER / WEIGHTS, folder / WEIGHTS)
        else:
            shape = stored_shape(kind, facts, net_facts["classes"])
            crops = _view_crops(split, facts, params.batch_size) if kind == "views" else _whole_frames(split)
            with LogitsWriter(folder, params.dtype, shape) as writer:
                _run_teacher(compute.place(net), crops, writer, split.names, compute)
            manifest["arrays"] = writer.arrays
        shutil.copyfile(TEACHER / VAL_CLASSES, folder / VAL_CLASSES)
        write_json(folder / MANIFEST, manifest)


def _run_teacher(
    net: nn.Module, crops: Iterator[np.ndarray], writer: LogitsWriter, names: tuple[str, ...], compute: Compute
) -> None:
    """Write the logits of all `crops`, which are equally many for each frame of `names`."""
    *lead, height, width, _ = writer.shape
    done, total = 0, math.prod(lead)
    with Progress("teacher-logits", total, unit="crop") as progress:
        for images in crops:
            finite = writer.append(logits_on_grid(net, images, (height, width), compute))
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
def logits_on_grid(net: nn.Module, images_BHW3: np.ndarray, grid: tuple[int, int], compute: Compute) -> np.ndarray:
    """The teacher's logits float32 (B, *grid, C) of uint8 crops, resized to the grid where its own is another."""
    inputs = normalised(torch.from_numpy(images_BHW3).to(compute.device))
    with compute.autocast():
        logits = net.eval()(inputs)
    logits = logits.float()
    if tuple(logits.shape[-2:]) != tuple(grid):
        logits = upsample(logits, grid)
    return logits.permute(0, 2, 3, 1).cpu().numpy()
