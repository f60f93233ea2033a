"""Bytes of each stored form of the logits and what it loses against float32 (5-form-...).

    python -m benchmarks.cache_precision --weights models/teacher/teacher.safetensors --prepared data/prepared

As a command it measures the logits of your teacher on crops of its train frames; as a part of the benchmarks, those of
a small network that is trained for a minute on the synthetic city. An untrained network has huge logits, so it would
not do.

Shapes: B crops, h/w cells of the logits' grid, C classes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.our_loop import student_settings
from benchmarks.rows import Row
from benchmarks.streets import QUICK, streets_on_disk
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.transforms import crop
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.nets.weights import load_net
from segdistill.prepare.cityscapes import CLASSES
from segdistill.teacher_logits.shards import logits_on_grid
from segdistill.teacher_logits.writer import quantize
from segdistill.training.batches import CropLoader
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import Job, train

STRIDE, LEVELS = 4, 255
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)
NET, STEPS = "deeplabv3_mobilenet_lite", 200


def as_float16(logits_BhwC: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the logits as float16 stores them, and the bytes of a logit vector."""
    return logits_BhwC.astype(np.float16).astype(np.float32), 2 * logits_BhwC.shape[-1]


def as_kept(logits_BhwC: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the logits as `teacher_logits.dtype: uint8` stores them, and the bytes of a logit vector."""
    stored, scale = quantize(logits_BhwC)
    offset, step = scale.astype(np.float32)[:, :, :1], scale.astype(np.float32)[:, :, 1:]
    vectors = stored.size // stored.shape[-1]
    return offset + step * stored, (stored.nbytes + scale.nbytes) / vectors


def with_scale_over(axes: tuple[int, ...]) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    """Return a form: uint8 with one float16 offset and step for all values along `axes`."""

    def form(logits_BhwC: np.ndarray) -> tuple[np.ndarray, float]:
        offset = logits_BhwC.min(axes, keepdims=True).astype(np.float16).astype(np.float32)
        step = ((logits_BhwC.max(axes, keepdims=True) - offset) / LEVELS).astype(np.float16).astype(np.float32)
        stored = np.rint((logits_BhwC - offset) / np.where(step > 0, step, 1)).clip(0, LEVELS)
        classes = logits_BhwC.shape[-1]
        return offset + step * stored, classes + 4 * offset.size / (logits_BhwC.size // classes)

    return form


FORMS = {
    "float16": ("float16", as_float16),
    "uint8": ("uint8, a scale for each class of each row (kept)", as_kept),
    "uint8-cell": ("uint8, a scale for each cell", with_scale_over((3,))),
    "uint8-class": ("uint8, a scale for each class of each view", with_scale_over((1, 2))),
    "uint8-global": ("uint8, a scale for each class of all views", with_scale_over((0, 1, 2))),
}


def losses(exact_BhwC: np.ndarray, stored_BhwC: np.ndarray) -> dict:
    """Return the mean KL(float32 || stored) over the cells at T = 1 and T = 4, and the largest error of a logit."""

    def kl(temperature: float) -> float:
        exact, stored = (
            (torch.from_numpy(logits).double() / temperature).log_softmax(-1) for logits in (exact_BhwC, stored_BhwC)
        )
        return (exact.exp() * (exact - stored)).sum(-1).mean().item()

    largest = float(np.abs(exact_BhwC - stored_BhwC).max())
    return {"kl_t1": kl(1.0), "kl_t4": kl(4.0), "max_abs_error": largest}


def rows_of(logits_BhwC: np.ndarray) -> list[Row]:
    """Return the bytes per logit vector and the loss of each form."""
    rows = []
    for name, (what, form) in FORMS.items():
        stored, vector_bytes = form(logits_BhwC)
        lost = losses(logits_BhwC, stored)
        more = f"; {_short(lost['kl_t4'])} at T=4, no logit is off by more than {_short(lost['max_abs_error'])}"
        rows.append(
            Row(f"5-form-{name}-bytes", f"{what}: of a logit vector", round(vector_bytes, 2), None, "bytes", None)
        )
        rows.append(
            Row(
                f"5-form-{name}-kl",
                f"{what}: mean KL from float32, T=1{more}",
                _short(lost["kl_t1"]),
                None,
                "nats",
                None,
            )
        )
    return rows


def _short(value: float) -> float:
    return float(f"{value:.2g}")


def logits_of(net: nn.Module, data: PreparedData, crop_px: tuple[int, int], frames: int) -> np.ndarray:
    """Return logits float32 (B, h, w, C) of two crops of each of `frames` frames, spread over the train split."""
    split = data.train
    chosen = np.unique(np.linspace(0, len(split) - 1, frames).astype(int)).repeat(2)
    origins = ViewSpec.of(data, crop_px, views=2, stride=STRIDE, seed=0).origins()[chosen, np.arange(len(chosen)) % 2]
    images = np.empty((len(chosen), *crop_px, 3), np.uint8)
    crop(split.images, chosen, origins, np.zeros(len(chosen), bool), crop_px, images)
    grid = (crop_px[0] // STRIDE, crop_px[1] // STRIDE)
    teacher = TorchPredictor(net, COMPUTE)
    parts = [logits_on_grid(teacher, images[first : first + 4], grid) for first in range(0, len(images), 4)]
    return np.concatenate(parts)


def trained_net(data: PreparedData, crop_px: tuple[int, int], steps: int) -> nn.Module:
    """Return a small network after `steps` steps on the labels of the train split."""
    torch.manual_seed(0)
    origins = ViewSpec.of(data, crop_px, views=64, stride=1, seed=0).origins()
    batches = BatchSampler(0, "precision", len(data.train), 64, 4, flip_probability=0.5, jitter=0.0)
    own = {"steps": steps, "batch_size": 4, "schedule": "poly", "lr": 0.02}
    never = {"evaluate_every_steps": 0, "log_every_steps": steps, "checkpoint_every_steps": steps}
    settings = student_settings().model_copy(update=own | never)
    job = Job("precision", build(NET, CLASSES), CropLoader(data.train, batches, origins, crop_px), settings, COMPUTE)
    with tempfile.TemporaryDirectory() as folder, Checkpointer("precision", "benchmark", Path(folder)) as checkpointer:
        train(job, checkpointer)
    return job.net.eval()


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows, of the small network."""
    data, crop_px, steps = streets_on_disk(QUICK.frame_px, QUICK.frames).data, (128, 256), 4 if quick else STEPS
    net = trained_net(data, (128, 128), steps)
    conditions = {"network": NET, "steps": steps, "crop_px": list(crop_px), "data": "synthetic city"}
    return conditions, rows_of(logits_of(net, data, crop_px, len(data.train)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a teacher that this project trained, .safetensors")
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--crop-px", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=32, help="frames that two crops each are taken from")
    given = parser.parse_args()
    net, _ = load_net(given.weights)
    logits = logits_of(net, PreparedData.open(given.prepared), tuple(given.crop_px), given.frames)
    for row in rows_of(logits):
        print(f"{row.value:>10g} {row.unit:<6} {row.what}")


if __name__ == "__main__":
    main()
