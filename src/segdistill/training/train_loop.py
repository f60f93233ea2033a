"""The one training loop. The teacher, the distilled and the finetuned students are arguments to it.

Shapes: B batch, H/W crop in pixels, h/w logit grid, C classes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segdistill.base.errors import InputError
from segdistill.base.params import TrainingParams
from segdistill.nets.compute import Compute
from segdistill.nets.losses import DISTILLATION, label_loss, mixed
from segdistill.nets.resize import upsample
from segdistill.progress import CurveFile, Progress
from segdistill.training.crops import CropBatch, CropBatches
from segdistill.training.optimizer import SGD, ParameterGroup
from segdistill.training.schedules import lr_at
from segdistill.training.scratch import Scratch, TrainingStoppedError, stop_requests

CURVE_FILE = "curve.csv"
CURVE_COLUMNS = ("step", "lr", "loss", "label_loss", "distill_loss", "holdout_mean_iou")


class Distillation(NamedTuple):
    """How a student learns from a teacher: the loss, and where the logits come from when they are not in the batch."""

    alpha: float
    method: str
    temperature: float
    kl_at: str
    live_teacher: nn.Module | None = None


class Job(NamedTuple):
    """One training: a net, what it is shown, how it steps, and what it learns from beside the labels."""

    name: str
    net: nn.Module
    batches: CropBatches
    settings: TrainingParams
    lr: float
    compute: Compute
    distillation: Distillation | None = None
    holdout_mean_iou: Callable[[nn.Module, int], float | None] = lambda *_: None  # of the net after so many steps
    forward: Callable[[Tensor], Tensor] | None = None  # the net as its steps run it, where that is not the net itself


def train(job: Job, scratch: Scratch) -> list[dict]:
    """Train `job.net` in place and return its curve: rows of CURVE_COLUMNS, one whenever a log or an evaluation is due.

    Start ladder: 1. the unfinished training of exactly this job, if `scratch` holds one; 2. the net as it was given.

    Raises:
        InputError: the loss is not finite (before the update), or a weight (before it is saved); the last checkpoint
            stays.
        TrainingStoppedError: SIGINT or SIGTERM came; the state after the running step is saved.
    """
    net, settings = job.compute.place(job.net).train(), job.settings
    optimizer = sgd(net, settings)
    first, sums, curve = _resume(net, optimizer, scratch, job)
    curve_file = CurveFile(scratch.folder / CURVE_FILE, CURVE_COLUMNS, curve)
    progress = Progress(job.name, settings.steps, first, curve_file=curve_file)
    with stop_requests() as stops, progress:
        for step, batch in job.batches.steps(first, settings.steps):
            lr, losses = update(job, optimizer, step, batch)
            done = step + 1
            sums += losses.double().cpu()
            evaluate_now = settings.evaluate_every_steps and _due(done, settings.evaluate_every_steps, settings.steps)
            if evaluate_now or _due(done, settings.log_every_steps, settings.steps):
                mean_iou = job.holdout_mean_iou(net, done) if evaluate_now else None
                net.train()
                curve.append(_curve_row(done, lr, sums, curve, mean_iou))
                progress.point(curve[-1])
                sums.zero_()
            progress.advance()
            if stops or _due(done, settings.checkpoint_every_steps, settings.steps):
                _check_weights(net, job, done, lr)
                scratch.save(_state(net, optimizer, done, sums, curve))
            if stops:
                raise TrainingStoppedError(
                    f"{job.name}: stopped after step {done} of {settings.steps}; dvc repro goes on from there"
                )
    return curve


def update(job: Job, optimizer: SGD, step: int, batch: CropBatch) -> tuple[float, Tensor]:
    """One optimizer step on one batch: its learning rate, and (loss, label loss, distillation loss) before it (3,)."""
    lr = _lr(job, step)
    losses = _losses(job.net if job.forward is None else job.forward, batch, job)
    _check_finite(losses, job, step, lr)
    losses[0].backward()
    optimizer.step(lr)
    optimizer.zero_grad()
    return lr, torch.stack([loss.detach() for loss in losses])


def _due(done: int, every_steps: int, steps: int) -> bool:
    return done == steps or (every_steps > 0 and done % every_steps == 0)


def sgd(net: nn.Module, settings: TrainingParams) -> SGD:
    """SGD over the backbone and the rest, each at its own factor of the learning rate."""
    backbone, rest = {}, {}
    for name, parameter in net.named_parameters():
        (backbone if name.startswith("backbone.") else rest)[name] = parameter
    groups = [ParameterGroup(backbone, settings.backbone_lr_factor), ParameterGroup(rest, 1.0)]
    return SGD(groups, settings.momentum, settings.weight_decay)


def _lr(job: Job, step: int) -> float:
    settings = job.settings
    return lr_at(
        step,
        schedule=settings.schedule,
        lr=job.lr,
        steps=settings.steps,
        decay_every_steps=settings.decay_every_steps,
        gamma=settings.gamma,
        poly_power=settings.poly_power,
    )


def _losses(forward: Callable[[Tensor], Tensor], batch: CropBatch, job: Job) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, label loss, distillation loss) of one batch; the last is 0 for a control."""
    device, settings, distillation = job.compute.device, job.settings, job.distillation
    inputs, targets = batch.inputs(device), batch.targets(device)
    # Dropout is the one draw that the nets make themselves: seeded by the step, it does not depend on earlier steps.
    torch.manual_seed(batch.plan.seed)
    with job.compute.autocast():
        logits = forward(inputs)
    pixels = upsample(logits.float(), targets.shape[-2:])
    label = label_loss(settings.label_loss, pixels, targets, settings.focal_gamma)
    if distillation is None:
        return label, label, torch.zeros_like(label)
    teacher = _teacher_logits(batch, inputs, job)
    size = targets.shape[-2:] if distillation.kl_at == "full" else teacher.shape[-2:]
    student = pixels if size == pixels.shape[-2:] else _on_grid(logits.float(), size)
    divergence = DISTILLATION[distillation.method](student, _on_grid(teacher, size), distillation.temperature)
    return mixed(label, divergence, distillation.alpha, distillation.temperature), label, divergence


def _teacher_logits(batch: CropBatch, inputs: Tensor, job: Job) -> Tensor:
    live = job.distillation.live_teacher
    if live is None:
        return batch.teacher_logits(job.compute.device).float()
    with torch.no_grad(), job.compute.autocast():
        return live(inputs).float()


def _on_grid(logits_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    return logits_BChw if tuple(logits_BChw.shape[-2:]) == tuple(size) else upsample(logits_BChw, size)


def _check_finite(losses: tuple[Tensor, ...], job: Job, step: int, lr: float) -> None:
    loss = losses[0].item()
    if not math.isfinite(loss):
        names = ", ".join(dict.fromkeys(job.batches.names(step)))
        raise InputError(f"{job.name}: loss is {loss} at step {step + 1}, lr {lr:g}, frames {names}; not updated")


def _check_weights(net: nn.Module, job: Job, done: int, lr: float) -> None:
    """A finite loss may have a gradient that is not: a state spoilt by it must not replace the last good one."""
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{job.name}: {name} is not finite after step {done}, lr {lr:g}; not saved")


def _curve_row(done: int, lr: float, sums: Tensor, curve: list[dict], holdout_mean_iou: float | None) -> dict:
    """A point of the curve: losses are means over the steps since the point before."""
    since = done - (curve[-1]["step"] if curve else 0)
    losses = dict(zip(CURVE_COLUMNS[2:5], (sums / since).tolist(), strict=True))
    return {"step": done, "lr": lr, **losses, "holdout_mean_iou": holdout_mean_iou}


def _state(net: nn.Module, optimizer: SGD, done: int, sums: Tensor, curve: list[dict]) -> dict:
    return {"step": done, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "sums": sums, "curve": curve}


def _resume(net: nn.Module, optimizer: SGD, scratch: Scratch, job: Job) -> tuple[int, Tensor, list[dict]]:
    """(first step, sums since the last point of the curve, curve), after loading what `scratch` holds."""
    state = scratch.load()
    if state is None:
        return 0, torch.zeros(3, dtype=torch.float64), []
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"], source=str(scratch.folder))
    print(f"{job.name}: goes on after step {state['step']} of {job.settings.steps}", file=sys.stderr)
    return state["step"], state["sums"], state["curve"]
