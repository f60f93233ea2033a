"""The training loop, for the teacher and for students: schedule, optimizer, steps.

Shapes: B batch, H/W crop in pixels, h/w logit grid, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.formats.curve import append_point, write_curve
from segdistill.nets.device import Compute
from segdistill.nets.realtime import AuxiliaryNet
from segdistill.nets.resize import upsample
from segdistill.params.model import TrainingParams, TrainingSettings
from segdistill.scoring.label_losses import label_loss
from segdistill.training.batches import CropBatch, CropLoader
from segdistill.training.checkpoint import Checkpointer, TrainingStoppedError, stop_requests

CURVE_FILE = "curve.csv"  # in the checkpointer's folder; `segdistill track --watch` follows it


class AddedLoss(Protocol):
    """The loss that a student adds to the label loss; see `student.distillation`."""

    def __call__(
        self, label: Tensor, logits_BChw: Tensor, pixels_BCHW: Tensor, inputs_B3HW: Tensor, batch: CropBatch
    ) -> tuple[Tensor, Tensor]:
        """Return (total loss, added loss)."""


class Job(NamedTuple):
    """One training: a network, its batches and settings, and the loss that it adds.

    Attributes:
        name: PHASE/RUN, or teacher.
        distillation: None for a teacher and for a control.
        holdout_mean_iou: scores the network after so many steps; None where no class occurs.
        forward: the network as its steps run it, where that is not the network itself (compiled); it returns what the
            network does.
    """

    name: str
    net: nn.Module
    batches: CropLoader
    settings: TrainingSettings
    compute: Compute
    distillation: AddedLoss | None = None
    holdout_mean_iou: Callable[[nn.Module, int], float | None] = lambda *_: None
    forward: Callable[[Tensor], Tensor | tuple[Tensor, ...]] | None = None


def train(job: Job, checkpointer: Checkpointer) -> list[dict]:
    """Train `job.net` in place and return its curve: a point whenever a log or an evaluation is due.

    Start ladder: 1. the unfinished training of exactly this job, if `checkpointer` holds one; 2. the network as given.

    Raises:
        UserError: the loss is not finite (before the update), or a weight (before it is saved); the last checkpoint
            stays.
        TrainingStoppedError: SIGINT or SIGTERM came; the state after the running step is saved.
    """
    net, settings = job.compute.place(job.net).train(), job.settings
    optimizer = sgd(net, settings)
    # Sums of (loss, label loss, distillation loss) since the last point of the curve.
    first, sums, curve = 0, torch.zeros(3, dtype=torch.float64), []
    if (state := checkpointer.load()) is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"], source=str(checkpointer.folder))
        first, sums, curve = state["step"], state["sums"], state["curve"]
        logger.info("%s: continues after step %d of %d", job.name, first, settings.steps)
    curve_file = checkpointer.folder / CURVE_FILE
    write_curve(curve_file, curve)  # again: a killed process may have been ahead of its last checkpoint

    with stop_requests() as stops, Progress(job.name, settings.steps, first) as progress:
        for step, batch in job.batches.steps(first, settings.steps):
            lr, losses = update(job, optimizer, step, batch)
            done = step + 1
            sums += losses.double().cpu()
            evaluate_now = settings.evaluate_every_steps and _is_due(done, settings.evaluate_every_steps, settings)
            if evaluate_now or _is_due(done, settings.log_every_steps, settings):
                mean_iou = job.holdout_mean_iou(net, done) if evaluate_now else None
                net.train()
                steps_since = done - (curve[-1]["step"] if curve else 0)
                means = dict(zip(("loss", "label_loss", "distill_loss"), (sums / steps_since).tolist(), strict=True))
                curve.append({"step": done, "lr": lr, **means, "holdout_mean_iou": mean_iou})
                append_point(curve_file, curve[-1])
                progress.show(
                    f"loss {means['loss']:.3f}" + ("" if mean_iou is None else f", holdout mIoU {mean_iou:.1%}")
                )
                sums.zero_()
            progress.advance()
            if stops or _is_due(done, settings.checkpoint_every_steps, settings):
                _check_weights(net, job, done, lr)
                state = {"step": done, "net": net.state_dict(), "optimizer": optimizer.state_dict()}
                checkpointer.save(state | {"sums": sums, "curve": curve})
            if stops:
                stopped = f"{job.name}: stopped after step {done} of {settings.steps}"
                raise TrainingStoppedError(f"{stopped}; dvc repro continues from there")
    return curve


def update(job: Job, optimizer: SGD, step: int, batch: CropBatch) -> tuple[float, Tensor]:
    """Make one optimizer step on one batch; return its lr and (loss, label loss, distillation loss) before it (3,)."""
    settings, device = job.settings, job.compute.device
    lr = lr_at(step, settings)
    inputs, targets = batch.inputs(device), batch.targets(device)
    # Dropout is the only random draw of the networks: seeded by the step, it does not depend on earlier steps.
    torch.manual_seed(batch.indices.seed)
    with job.compute.autocast():
        outputs = (job.forward or job.net)(inputs)
    logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
    pixels = upsample(logits.float(), targets.shape[-2:])
    label_loss_of = partial(label_loss, settings.label_loss, focal_gamma=settings.focal_gamma)
    label = label_loss_of(pixels, targets)
    # Auxiliary heads learn from labels only, so the weight of the label loss applies to them, too.
    from_labels = label
    if auxiliary:
        assert isinstance(job.net, AuxiliaryNet)
        from_labels = label + job.net.auxiliary_loss(auxiliary, pixels, targets, label_loss_of)
    if job.distillation is None:
        loss, added = from_labels, torch.zeros_like(label)
    else:
        loss, added = job.distillation(from_labels, logits, pixels, inputs, batch)
    if not math.isfinite(loss.item()):
        names = ", ".join(dict.fromkeys(job.batches.names(step)))
        where = f"at step {step + 1}, lr {lr:g}, frames {names}"
        raise UserError(f"{job.name}: loss is {loss.item()} {where}; not updated")
    loss.backward()
    optimizer.step(lr)
    optimizer.zero_grad()
    return lr, torch.stack([value.detach() for value in (loss, label, added)])


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
    """
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** (step // settings.decay_every_steps)
    assert settings.schedule == "poly", settings.schedule
    return settings.lr * (1 - step / settings.steps) ** settings.poly_power


class ParameterGroup(NamedTuple):
    """Parameters by name, float32 and on one device, whose learning rate is `lr_factor` times the schedule's."""

    parameters: dict[str, nn.Parameter]
    lr_factor: float


def sgd(net: nn.Module, settings: TrainingParams) -> SGD:
    """Return SGD over the backbone and the rest, each at its own factor of the learning rate."""
    backbone: dict[str, nn.Parameter] = {}
    rest: dict[str, nn.Parameter] = {}
    for name, parameter in net.named_parameters():
        (backbone if name.startswith("backbone.") else rest)[name] = parameter
    groups = [ParameterGroup(backbone, settings.backbone_lr_factor), ParameterGroup(rest, 1.0)]
    return SGD(groups, settings.momentum, settings.weight_decay)


class SGD:
    """SGD with momentum over the kernel that `torch.optim.SGD(fused=True)` calls, with the same bits.

    v <- momentum * v + (gradient + weight_decay * w);  w <- w - lr * v. The first v of a parameter is its decayed
    gradient; without momentum there is no v. A parameter without a gradient stays as it is.

    Own code, because the first optimizer of torch.optim imports torch's compiler: 2.5 s of CPU time in each stage that
    trains, more than the tiny profile's steps take.

    The weights have to be in their final memory layout: the kernel takes weight, gradient and v as flat memory, and
    autograd gives a gradient the layout of its weight.
    """

    def __init__(self, groups: list[ParameterGroup], momentum: float, weight_decay: float) -> None:
        self.groups, self.momentum, self.weight_decay = groups, momentum, weight_decay
        self._velocities: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            gradients = {name: weight.grad for name, weight in group.parameters.items() if weight.grad is not None}
            first = {name: g for name, g in gradients.items() if self.momentum and name not in self._velocities}
            self._velocities |= {name: torch.empty_like(gradient) for name, gradient in first.items()}
            later = {name: gradient for name, gradient in gradients.items() if name not in first}
            for moving, is_first_step in ((first, True), (later, False)):
                if moving:
                    torch._fused_sgd_(
                        [group.parameters[name] for name in moving],
                        list(moving.values()),
                        [self._velocities[name] for name in moving] if self.momentum else [],
                        weight_decay=self.weight_decay,
                        momentum=self.momentum,
                        lr=lr * group.lr_factor,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                        is_first_step=is_first_step,
                    )

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for group in self.groups:
            for parameter in group.parameters.values():
                parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return v of each parameter that has moved, by the parameter's name; shared with the optimizer, not copied."""
        return dict(self._velocities)

    def load_state_dict(self, state: Mapping[str, Tensor], source: str) -> None:
        """Continue from what `state_dict` gave; `source` names it in messages.

        Raises:
            UserError: the state is that of other parameters.
        """
        parameters = {name: parameter for group in self.groups for name, parameter in group.parameters.items()}
        for name, velocity in state.items():
            if name not in parameters or velocity.shape != parameters[name].shape:
                raise UserError(
                    f"{source}: holds optimizer state of {name!r}, which this network does not have; remove it"
                )
        # In the memory layout of the parameter: a loaded state may have another.
        self._velocities = {
            name: torch.empty_like(parameters[name], requires_grad=False).copy_(velocity)
            for name, velocity in state.items()
        }
