"""Trainings of a fresh student by the library's own loop, a few steps at a time, and the bare step they stand on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.streets import VIEWS, Sizes, Streets
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import origins_of
from segdistill.nets.device import Compute
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.params.model import DistillParams
from segdistill.params.read import load_params
from segdistill.prepare.cityscapes import CLASSES
from segdistill.scoring.label_losses import label_loss
from segdistill.training.batches import CropLoader
from segdistill.training.job import compiled, device_of
from segdistill.training.loop import Distillation, Job, sgd, update

PROFILES = Path(__file__).parent.parent / "profiles"
STUDENT, TEACHER = "deeplabv3plus_mobilenet", "deeplabv3plus_resnet101"
FROM_CACHE = Distillation(alpha=0.3, method="kl", temperature=1.0, kl_resolution="stride")
NEVER = 10**9  # steps


def default_settings(profile: str = "default") -> DistillParams:
    """The section `distill` of a profile."""
    return load_params(PROFILES / f"{profile}.yaml").distill


def our_compute(device: str = "cpu") -> Compute:
    """What the stages compute with there, as the profiles have it; on a CPU, freed memory is kept from here on."""
    params = load_params(PROFILES / "default.yaml")
    return device_of(params.model_copy(update={"compute": params.compute.model_copy(update={"device": device})}))


def a_teacher(compute: Compute) -> nn.Module:
    """A teacher in eval mode, with random weights."""
    return compute.place(build(TEACHER, CLASSES)).eval()


class OurLoop:
    """Makes jobs of the training loop on the prepared frames of `streets`."""

    def __init__(self, streets: Streets, sizes: Sizes, compute: Compute, settings: DistillParams) -> None:
        self.streets, self.sizes, self.compute = streets, sizes, compute
        self.settings = settings.model_copy(update={"batch_size": sizes.batch, "steps": NEVER, "jitter": 0.0})

    def job(self, name: str, distillation: Distillation | None = None, **settings) -> Job:
        """A training of a fresh student; `settings` change those of the profile.

        It learns from stored logits, unless `distillation` holds a live teacher or is None.
        """
        torch.manual_seed(0)
        settings = self.settings.model_copy(update=settings)
        cached = distillation is not None and distillation.live_teacher is None
        crops = CropLoader(
            self.streets.split,
            BatchSampler(
                0, name, len(self.streets.split), VIEWS, self.sizes.batch, settings.flip_probability, settings.jitter
            ),
            origins_of(self.streets.facts(self.sizes.crop_px)),
            self.sizes.crop_px,
            self.streets.stored_logits(self.sizes.crop_px) if cached else None,
            pinned=self.compute.device.type == "cuda",
        )
        net = self.compute.place(build(STUDENT, CLASSES)).train()
        return Job(name, net, crops, settings, 0.01, self.compute, distillation)

    def live(self) -> Distillation:
        """The same distillation with the teacher run in every step."""
        return FROM_CACHE._replace(live_teacher=a_teacher(self.compute))


def cpp_compiler() -> str | None:
    """The C++ compiler that torch would take on a CPU, if there is one."""
    return next(filter(shutil.which, ("g++", "clang++", "c++")), None)


def through_compiler(job: Job) -> Job:
    """`job` with its steps compiled, as `distill.compile: true` has it."""
    return job._replace(forward=compiled(job.net, job.name, "distill.compile"))


def next_steps(job: Job, steps: int) -> Callable[[], None]:
    """A call that takes the next `steps` steps of `job`, loading included."""
    optimizer, batches = sgd(job.net, job.settings), job.batches.steps(0, NEVER)

    def take() -> None:
        for _ in range(steps):
            update(job, optimizer, *next(batches))
        finish(job.compute)

    return take


def bare_steps(job: Job, steps: int) -> Callable[[], None]:
    """Forward, backward and optimizer on one batch that is there already: the floor of any loop."""
    optimizer, batch = sgd(job.net, job.settings), job.batches.load(0)
    inputs, targets = batch.inputs(job.compute.device), batch.targets(job.compute.device)

    def take() -> None:
        for _ in range(steps):
            with job.compute.autocast():
                logits = job.net(inputs)
            label_loss("cross_entropy", upsample(logits.float(), targets.shape[-2:]), targets, 0.0).backward()
            optimizer.step(lr=0.0)
            optimizer.zero_grad()
        finish(job.compute)

    return take


def finish(compute: Compute) -> None:
    """Wait for what a GPU still has to do."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
