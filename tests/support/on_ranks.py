"""What one process and several ranks have to compute alike, and a rank that writes what it found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.data.prepared import Split
from segdistill.formats.classes import IGNORE
from segdistill.nets.device import TorchPredictor
from segdistill.nets.realtime import AuxiliaryNet
from segdistill.nets.resize import upsample
from segdistill.networks.pidnet_s import boundary_loss
from segdistill.parallel import ranks
from segdistill.parallel.launch import on_devices
from segdistill.parallel.whole_batch import data_parallel, whole_batch_layers
from segdistill.params.model import ComputeParams
from segdistill.scoring.evaluate import evaluate
from segdistill.scoring.label_losses import inverse_log_weights
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import Job, step_forward, train, update
from segdistill.training.mixing import Mixer
from segdistill.training.optimizers import make_optimizer
from support.tiny_training import (
    CLASSES,
    COMPUTE,
    FeaturesOfATeacher,
    LogitsOfATeacher,
    TinyNet,
    distilled,
    make_job,
    make_split,
)

FIRST_STEPS = 3


class ActivatingBatchNorm(nn.BatchNorm2d):
    """Batch norm and activation in one module, as timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU6()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x_BCHW)))


class AuxiliaryTinyNet(AuxiliaryNet):
    """TinyNet with a boundary head, whose loss weighs pixels by counts of the batch."""

    auxiliary_heads = ("boundary",)

    def __init__(self) -> None:
        super().__init__()
        self.tiny, self.boundary = TinyNet(), nn.Conv2d(6, 1, 1)

    def forward(self, images_BCHW):
        features, logits = self.tiny.features_and_logits(images_BCHW)
        return (logits, self.boundary(features)) if self.training else logits

    def auxiliary_loss(self, auxiliary, pixels_BCHW, labels_BHW, label_loss):
        boundary = upsample(auxiliary[0].float(), labels_BHW.shape[-2:])[:, 0]
        return 20 * boundary_loss(boundary, labels_BHW) + label_loss(pixels_BCHW, labels_BHW)


class CropwiseTeacher(TinyNet):
    """A teacher that sees one crop at a time: convolutions round batches of different sizes differently."""

    def features_and_logits(self, images_BCHW):
        of_crops = [super(CropwiseTeacher, self).features_and_logits(crop) for crop in images_BCHW.split(1)]
        return tuple(torch.cat(parts) for parts in zip(*of_crops, strict=True))


class BareBatchNorms(nn.Sequential):
    """Batch norms without weights, without running values and with their means, and one of vectors (B, C)."""

    def __init__(self) -> None:
        super().__init__(
            nn.BatchNorm2d(6, affine=False),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.BatchNorm2d(6, momentum=None),
        )
        self.of_vectors = nn.BatchNorm1d(6)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        first, second, third, of_vectors = self
        x_BCHW = third(second(first(x_BCHW)).square())
        return x_BCHW * of_vectors(x_BCHW.square().mean((2, 3)))[:, :, None, None].sigmoid()


def uneven_split() -> Split:
    """Return frames with unequal numbers of void pixels, so that ranks count unequal numbers of valid ones."""
    split = make_split()
    for frame, labels in enumerate(split.labels):
        labels[: 4 * frame] = IGNORE
    return split


def perturbed(net: nn.Module) -> nn.Module:
    """Return the network with other biases than zeros, with which ReLUs are undecided."""
    torch.manual_seed(3)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def taught(**settings) -> dict:
    """Return arguments of a job that learns from stored logits."""
    return distilled(**settings) | {"cached": LogitsOfATeacher(CropwiseTeacher(seed=9), make_split())}


def job_of(case: str) -> Job:
    """Return the job of a case, with a network of its own."""
    net: nn.Module = TinyNet()
    given: dict = {}
    if case == "activating":
        net.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), ActivatingBatchNorm(6))
    elif case == "bare batch norms":
        net.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), BareBatchNorms())
    elif case == "auxiliary":
        net = AuxiliaryTinyNet()
    elif case == "adamw with average":
        given = {"optimizer": "adamw", "ema_decay": 0.9}
    elif case in ("focal", "ohem"):
        given = {"label_loss": case, "ohem_threshold": 0.05, "ohem_min_share": 0.3}
    elif case in ("kl", "channel_kl", "sigmoid_kl"):
        given = taught(method=case)
    elif case in ("right", "label_probability"):
        given = taught(distill_where=case)
    elif case in ("cutmix", "classmix"):
        given = taught(mixer=Mixer(case, 0.7, 0, "distill", 4))
    elif case == "features":
        given = taught(feature_weight=0.5, features=FeaturesOfATeacher(CropwiseTeacher(seed=9), make_split()))
    job = make_job(net=perturbed(net), split=uneven_split(), **given)
    if case == "class weights":
        job = job._replace(class_weights=inverse_log_weights(torch.tensor([0.1, 0.3, 0.6])))
    return job


CASES = (
    *("plain", "activating", "bare batch norms", "auxiliary", "adamw with average", "class weights", "focal", "ohem"),
    *("kl", "channel_kl", "sigmoid_kl", "right", "label_probability", "cutmix", "classmix", "features"),
)


class Keeper:
    """An optimizer that keeps the gradients of a step and moves nothing."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.gradients = net, {}

    def step(self, lr: float) -> None:
        self.gradients = {name: parameter.grad.clone() for name, parameter in self.net.named_parameters()}

    def zero_grad(self) -> None:
        self.net.zero_grad()


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Let all that computes in float32 compute in float64: rounding decides which ReLUs are open."""
    given = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = given


def first_gradients(case: str) -> dict[str, Tensor]:
    """Return the gradients of the first step, in float64."""
    job = job_of(case)
    job.batches.batches.jitter = 0.0  # it is defined on bytes and float32
    with in_float64():
        net = job.net.to(torch.float64, memory_format=torch.channels_last).train()
        own = step_forward(net, job.distillation)
        forward = data_parallel(net, lambda images: own(images.double()))
        keeper = Keeper(net)
        weights = None if job.class_weights is None else job.class_weights.double()
        with whole_batch_layers(net):
            update(job._replace(forward=forward, class_weights=weights), keeper, 0, job.batches.load(0))
    return keeper.gradients


def first_losses(case: str) -> Tensor:
    """Return (loss, label loss, distillation loss) of the first steps, (steps, 3)."""
    job = job_of(case)
    net = COMPUTE.place(job.net).train()
    job = job._replace(forward=data_parallel(net, step_forward(net, job.distillation)))
    optimizer, losses = make_optimizer(net, job.settings), []
    with whole_batch_layers(net):
        for step, batch in job.batches.steps(0, FIRST_STEPS):
            losses.append(update(job, optimizer, step, batch)[1])
    return torch.stack(losses)


def inputs(case: str) -> list[list[Tensor]]:
    """Return of the first steps what networks and losses get: images, labels, teacher logits, teacher features."""
    job, cpu = job_of(case), torch.device("cpu")
    batches = [job.batches.load(step) for step in range(FIRST_STEPS)]
    given = [
        (batch.inputs(cpu), batch.targets(cpu), batch.teacher_logits(cpu), batch.teacher_features(cpu))
        for batch in batches
    ]
    return [[part for part in parts if part is not None] for parts in given]


def evaluation(batch_size: int) -> tuple[dict, dict[int, np.ndarray], list[tuple]]:
    """Evaluate a network on all frames; return metrics, kept class maps, and (frame, classes, counts) of each call."""
    split, frames = uneven_split(), []
    found = evaluate(
        TorchPredictor(perturbed(TinyNet()), COMPUTE),
        split,
        CLASSES,
        batch_size,
        teacher_classes=lambda index: np.asarray(split.labels[index]),
        keep=[1, 3],
        on_frame=lambda *given: frames.append(given),
    )
    return *found, frames


def trained(root: Path, case: str, **hook) -> tuple[dict[str, Tensor], list[dict]]:
    """Train the whole job of a case, from its checkpoint in `root` if it has one; return its weights and curve."""
    job = job_of(case)
    job.batches.hook = hook.get("hook", lambda step: None)
    settings = job.settings.model_copy(update={"log_every_steps": 1, "checkpoint_every_steps": 2})
    with contextlib.ExitStack() as held:
        checkpointer = Checkpointer(case, "key", root, wait_s=0)
        if ranks.is_first():
            held.enter_context(checkpointer)
        curve = train(job._replace(settings=settings), checkpointer)
    return job.net.state_dict(), curve


def main(folder: Path) -> None:
    """Compute everything on this rank, whose environment is that of torchrun, and write it to `folder`."""
    with on_devices(ComputeParams(device="cpu", precision="float32", threads=1)):
        found = {
            "inputs": {case: inputs(case) for case in CASES},
            "gradients": {case: first_gradients(case) for case in CASES},
            "losses": {case: first_losses(case) for case in CASES},
            "trained": trained(folder / "scratch", "adamw with average"),
            "continued": trained(folder / "stopped", "plain"),
            "evaluations": {size: evaluation(size) for size in (1, 2, 5)},
        }
        torch.save(found, folder / f"rank{ranks.rank()}.pt")
