"""The training loop, for the teacher and for students: steps and schedule.

Shapes: B batch, H/W crop in pixels, h/w logit grid, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.formats.curve import append_point, write_curve
from segdistill.nets.device import Compute
from segdistill.nets.features import HasFeatures
from segdistill.nets.realtime import AuxiliaryNet
from segdistill.nets.resize import upsample
from segdistill.parallel import ranks
from segdistill.parallel.whole_batch import data_parallel, whole_batch_layers
from segdistill.params.model import TrainingParams, TrainingSettings
from segdistill.scoring.label_losses import label_loss
from segdistill.training.averaging import MovingAverage
from segdistill.training.batches import CropBatch, CropLoader
from segdistill.training.checkpoint import Checkpointer, TrainingStoppedError, stop_requests
from segdistill.training.losses import LossSums
from segdistill.training.optimizers import Optimizer, make_optimizer

CURVE_FILE = "curve.csv"  # in the checkpointer's folder; `segdistill track --watch` follows it


class AddedLoss(Protocol):
    """The loss that a student adds to the label loss; see `student.distillation`."""

    @property
    def reads_features(self) -> bool:
        """Return whether the loss reads the features of the student as well."""

    def __call__(
        self,
        label: Tensor,
        logits_BChw: Tensor,
        pixels_BCHW: Tensor,
        inputs_B3HW: Tensor,
        batch: CropBatch,
        features_BCst: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (total loss, added loss)."""


class Job(NamedTuple):
    """One training: a network, its batches and settings, and the loss that it adds.

    Attributes:
        name: PHASE/RUN, or teacher.
        distillation: None for a teacher and for a control.
        holdout_mean_iou: scores the network after so many steps; None where no class occurs.
        forward: `step_forward` as the steps run it, where that is another function (compiled) of the same results.
        class_weights: of the label loss, float32 (C,) on the device; None weighs all classes alike.
    """

    name: str
    net: nn.Module
    batches: CropLoader
    settings: TrainingSettings
    compute: Compute
    distillation: AddedLoss | None = None
    holdout_mean_iou: Callable[[nn.Module, int], float | None] = lambda *_: None
    forward: Callable[[Tensor], Any] | None = None
    class_weights: Tensor | None = None


def step_forward(net: nn.Module, distillation: AddedLoss | None) -> Callable[[Tensor], Any]:
    """Return what a step calls on its input: the network, or its `features_and_logits` where the loss reads both."""
    if distillation is None or not distillation.reads_features:
        return net
    assert isinstance(net, HasFeatures)
    return net.features_and_logits


def train(job: Job, checkpointer: Checkpointer) -> list[dict]:
    """Train `job.net` in place and return its curve: a point whenever a log or an evaluation is due.

    With `ema_decay` the network ends as the moving average of its steps, which is also what the holdout scores.

    Start ladder: 1. the unfinished training of exactly this job, if `checkpointer` holds one; 2. the network as given.

    Raises:
        UserError: the loss is not finite (before the update; on a GPU when losses are read, before a point of the
            curve and a checkpoint), or a weight (before it is saved); the last checkpoint stays.
        TrainingStoppedError: SIGINT or SIGTERM came; the state after the running step is saved.
    """
    net, settings = job.compute.place(job.net).train(), job.settings
    job = job._replace(forward=data_parallel(net, job.forward or step_forward(net, job.distillation)))
    optimizer = make_optimizer(net, settings)
    # With `ema_decay` the average is what is scored, shown and handed on; the steps move the network itself.
    average = MovingAverage(net, settings.ema_decay) if settings.ema_decay else None
    result = average.net if average else net
    first, start_sums, curve = 0, torch.zeros(3, dtype=torch.float64), []
    if (state := ranks.by_first(checkpointer.load)) is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"], source=str(checkpointer.folder))
        if average:
            average.net.load_state_dict(state["average"])
        first, start_sums, curve = state["step"], state["sums"], state["curve"]
        logger.info("%s: continues after step %d of %d", job.name, first, settings.steps)
    curve_file = checkpointer.folder / CURVE_FILE
    if ranks.is_first():
        write_curve(curve_file, curve)  # again: a killed process may have been ahead of its last checkpoint

    sums = LossSums(start_sums, partial(_refuse_loss, job, "not saved"))  # since the last point of the curve
    with (
        stop_requests() as stops,
        Progress(job.name, settings.steps, first) as progress,
        whole_batch_layers(net),
    ):
        for step, batch in job.batches.steps(first, settings.steps):
            lr, losses = update(job, optimizer, step, batch)
            if average:
                average.update(step)
            done = step + 1
            sums.add(step, losses)
            evaluate_now = settings.evaluate_every_steps and _is_due(done, settings.evaluate_every_steps, settings)
            if evaluate_now or _is_due(done, settings.log_every_steps, settings):
                losses_since = sums.read()
                mean_iou = job.holdout_mean_iou(result, done) if evaluate_now else None
                net.train()
                steps_since = done - (curve[-1]["step"] if curve else 0)
                means_since = (losses_since / steps_since).tolist()
                means = dict(zip(("loss", "label_loss", "distill_loss"), means_since, strict=True))
                curve.append({"step": done, "lr": lr, **means, "holdout_mean_iou": mean_iou})
                if ranks.is_first():
                    append_point(curve_file, curve[-1])
                progress.show(
                    f"loss {means['loss']:.3f}" + ("" if mean_iou is None else f", holdout mIoU {mean_iou:.1%}")
                )
                sums.reset()
            progress.advance()
            stop = ranks.any_of(bool(stops))
            if stop or _is_due(done, settings.checkpoint_every_steps, settings):
                losses_read = sums.read()
                _check_weights(net, job, done, lr)
                state = {"step": done, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
                if average:
                    state["average"] = average.net.state_dict()
                if ranks.is_first():
                    checkpointer.save(state | {"sums": losses_read, "curve": curve})
            if stop:
                stopped = f"{job.name}: stopped after step {done} of {settings.steps}"
                raise TrainingStoppedError(f"{stopped}; dvc repro continues from there")
    if average:
        net.load_state_dict(average.net.state_dict())
    return curve


def update(job: Job, optimizer: Optimizer, step: int, batch: CropBatch) -> tuple[float, Tensor]:
    """Make one optimizer step on one batch; return its lr and (loss, label loss, distillation loss) before it (3,)."""
    settings, device = job.settings, job.compute.device
    lr = lr_at(step, settings)
    batch = batch.on(device)
    inputs, targets = batch.inputs(device), batch.targets(device)
    # Dropout is the only random draw of the networks: seeded by the step, it does not depend on earlier steps.
    torch.manual_seed(batch.indices.seed)
    with job.compute.autocast():
        outputs = (job.forward or step_forward(job.net, job.distillation))(inputs)
    features = None
    if job.distillation is not None and job.distillation.reads_features:
        features, outputs = outputs
    logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    pixels = upsample(logits.float(), targets.shape[-2:])
    label_loss_of = partial(label_loss, settings, class_weights_C=job.class_weights)
    label = label_loss_of(pixels, targets)
    # Auxiliary heads learn from labels only, so the weight of the label loss applies to them, too.
    from_labels = label
    if auxiliary:
        assert isinstance(job.net, AuxiliaryNet)
        from_labels = label + job.net.auxiliary_loss(auxiliary, pixels, targets, label_loss_of)
    if job.distillation is None:
        loss, added = from_labels, torch.zeros_like(label)
    else:
        loss, added = job.distillation(from_labels, logits, pixels, inputs, batch, features)
    losses = ranks.mean(torch.stack([value.detach() for value in (loss, label, added)]))
    # Looking at the loss would make the host wait for a GPU in every step; there `LossSums` looks at it later.
    if device.type == "cpu" and not math.isfinite(losses[0].item()):
        _refuse_loss(job, "not updated", step, losses[0].item())
    loss.backward()
    optimizer.step(lr)
    optimizer.zero_grad()
    return lr, losses


def _refuse_loss(job: Job, outcome: str, step: int, loss: float) -> NoReturn:
    names = ", ".join(dict.fromkeys(job.batches.names(step)))
    where = f"at step {step + 1}, lr {lr_at(step, job.settings):g}, frames {names}"
    raise UserError(f"{job.name}: loss is {loss} {where}; {outcome}")


def _is_due(done: int, every_steps: int, settings: TrainingParams) -> bool:
    return done == settings.steps or (every_steps > 0 and done % every_steps == 0)


def _check_weights(net: nn.Module, job: Job, done: int, lr: float) -> None:
    """Refuse to save weights that are not finite: a finite loss may have a gradient that is not."""
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{job.name}: {name} is not finite after step {done}, lr {lr:g}; not saved")


def lr_at(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of optimizer step `step`, counted from 0.

    constant: lr. step: lr * gamma^(step // decay_every_steps), as torch's StepLR.
    poly: lr * (1 - step / steps)^poly_power (Chen et al., DeepLab, arXiv:1606.00915).
    Of the first W = warmup_steps, step s has (s + 1) / W of that.
    """
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "constant":
        return settings.lr * warmup
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** (step // settings.decay_every_steps) * warmup
    assert settings.schedule == "poly", settings.schedule
    return settings.lr * (1 - step / settings.steps) ** settings.poly_power * warmup
