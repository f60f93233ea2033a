"""Trainings of a fresh student by the library's own loop, a few steps at a time, and the bare step under them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.streets import VIEWS, Sizes, Streets
from segdistill.data.sampling import BatchSampler
from segdistill.nets.device import Compute, device_of
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.params.model import StudentSettings
from segdistill.params.read import load_params
from segdistill.prepare.cityscapes import CLASSES
from segdistill.scoring.label_losses import label_loss
from segdistill.student.distillation import Distillation, add_feature_projection
from segdistill.training.batches import CropLoader
from segdistill.training.job import compiled, loader_threads
from segdistill.training.loop import Job, update
from segdistill.training.optimizers import make_optimizer

PROFILES = Path(__file__).parent.parent / "profiles"
STUDENT, TEACHER = "deeplabv3plus_mobilenet", "deeplabv3plus_resnet101"
NEVER = 10**9  # steps
FEATURE_CHANNELS = 256  # the most that can be stored


def student_settings(profile: str = "default") -> StudentSettings:
    """Return the section `distill` of a profile, with KL at T = 1 on the stored grid and no teacher yet."""
    section = load_params(PROFILES / f"{profile}.yaml").distill.model_dump()
    compared = {"method": "kl", "temperature": 1.0, "kl_resolution": "stride", "alpha": 0.3, "teacher": "none"}
    return StudentSettings(**section | compared | {"student": STUDENT, "lr": 0.01, "seed": 0})


def our_compute(device: str = "cpu") -> Compute:
    """Return what the stages compute with by the profiles; on a CPU, keep freed memory from here on."""
    return device_of(load_params(PROFILES / "default.yaml").compute.model_copy(update={"device": device}))


def random_teacher(compute: Compute) -> nn.Module:
    """Return a teacher in eval mode, with random weights."""
    return compute.place(build(TEACHER, CLASSES)).eval()


class OurLoop:
    """Makes jobs of the training loop on the prepared frames of `streets`."""

    def __init__(self, streets: Streets, sizes: Sizes, compute: Compute, settings: StudentSettings) -> None:
        self.streets, self.sizes, self.compute = streets, sizes, compute
        self.settings = settings.model_copy(update={"batch_size": sizes.batch, "steps": NEVER, "jitter": 0.0})

    def job(self, name: str, **changed: object) -> Job:
        """Return a training of a fresh student whose settings are those of the profile, with `changed`.

        `teacher` is none (the default), views (stored logits) or online (a live teacher with random weights). With a
        feature_weight it has stored features as well.
        """
        torch.manual_seed(0)
        settings, split, crop_px = self.settings.model_copy(update=changed), self.streets.split, self.sizes.crop_px
        stored = self.streets.stored_logits(crop_px, "float16") if settings.teacher == "views" else None
        sampler = BatchSampler(0, name, len(split), VIEWS, self.sizes.batch, settings.flip_probability, settings.jitter)
        pinned = self.compute.device.type == "cuda"
        features = self.streets.stored_features(crop_px, FEATURE_CHANNELS) if settings.feature_weight else None
        origins = self.streets.views(crop_px).origins()
        threads = loader_threads(self.compute)
        crops = CropLoader(split, sampler, origins, crop_px, stored, pinned, features=features, threads=threads)
        net = build(STUDENT, CLASSES)
        projection = add_feature_projection(net, FEATURE_CHANNELS, 0) if features else None
        net = self.compute.place(net).train()
        live_teacher = random_teacher(self.compute) if settings.teacher == "online" else None
        distillation = None
        if settings.teacher != "none":
            distillation = Distillation(settings, self.compute, live_teacher, projection)
        return Job(name, net, crops, settings, self.compute, distillation)


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch would take on a CPU; None where there is none."""
    return next(filter(shutil.which, ("g++", "clang++", "c++")), None)


def through_compiler(job: Job) -> Job:
    """Return `job` with its steps compiled, as `distill.compile: true` does it."""
    return job._replace(forward=compiled(job.net, job.name, "distill.compile"))


def next_steps(job: Job, steps: int) -> Callable[[], None]:
    """Return a call that makes the next `steps` steps of `job`, loading included."""
    optimizer, batches = make_optimizer(job.net, job.settings), job.batches.steps(0, NEVER)

    def train_on() -> None:
        for _ in range(steps):
            update(job, optimizer, *next(batches))
        finish(job.compute)

    return train_on


def bare_steps(job: Job, steps: int) -> Callable[[], None]:
    """Return a call that makes `steps` steps on one loaded batch: forward, backward, optimizer. No loop can do less."""
    optimizer, batch = make_optimizer(job.net, job.settings), job.batches.load(0)
    inputs, targets = batch.inputs(job.compute.device), batch.targets(job.compute.device)

    def train_on() -> None:
        for _ in range(steps):
            with job.compute.autocast():
                logits = job.net(inputs)
            label_loss(job.settings, upsample(logits.float(), targets.shape[-2:]), targets).backward()
            optimizer.step(lr=0.0)
            optimizer.zero_grad()
        finish(job.compute)

    return train_on


def finish(compute: Compute) -> None:
    """Wait until a GPU has done its queued work."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
