"""The students that are compared: where the crops and the logits of each come from, and what it scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.our_loop import NEVER, next_steps
from benchmarks.rows import seconds_in_turn
from segdistill.data.prepared import PreparedData, Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.teacher_cache import TeacherCache
from segdistill.data.transforms import normalize
from segdistill.formats.header import Header
from segdistill.nets.device import TorchPredictor, device_of
from segdistill.nets.registry import build
from segdistill.nets.weights import load_net, save_net
from segdistill.params.model import Params, StudentSettings
from segdistill.paths import TEACHER, TEACHER_WEIGHTS, VAL_CLASSES
from segdistill.scoring.evaluate import evaluate
from segdistill.scoring.record import ClassMapArchive
from segdistill.student.distillation import Distillation, OnStoredGrid, kl
from segdistill.teacher_logits.build import build_cache
from segdistill.training.batches import CropLoader
from segdistill.training.job import Training, initial_net, run_training
from segdistill.training.loop import Job

STUDENT = "deeplabv3plus_mobilenet"
START_STEPS = 500  # of the common start of all arms
METRICS = ("mean_iou", "overall_acc", "teacher_agreement", "mean_loss", "crop_kl")
ANEW = 1024  # places per frame that crops are drawn from when nothing is stored for them


class Arm(NamedTuple):
    """What a student of this arm learns from; it trains `steps_share` times the steps of the other arms."""

    teacher: str
    views: int = ANEW
    kl_resolution: str = "stride"
    dtype: str = "float16"
    steps_share: float = 1.0


def arms(live_over_cached: float) -> dict[str, Arm]:
    """Return all arms, the control first. `live_over_cached`: time of a live step over that of a cached one."""
    return {
        "control": Arm("none"),
        "views-8": Arm("views", 8),
        "live": Arm("online"),
        "views-4": Arm("views", 4),
        "frame": Arm("frame"),
        "live-clock": Arm("online", steps_share=1 / live_over_cached),
        "views-2": Arm("views", 2),
        "views-16": Arm("views", 16),
        "views-8-full": Arm("views", 8, kl_resolution="full"),
        "views-8-uint8": Arm("views", 8, dtype="uint8"),
    }


@dataclass(frozen=True)
class EveryNth(PreparedData):
    """The prepared data with every n-th train frame."""

    every: int = 1

    @cached_property
    def train(self) -> Split:
        return Split(*(part[:: self.every] for part in self._open_split("train")))


class Study:
    """The prepared streets, the trained teacher, and the caches that the arms need."""

    def __init__(self, params: Params, alpha: float, every: int, caches: Path) -> None:
        self.params, self.alpha, self.caches = params, alpha, caches
        self.data, self.compute = EveryNth(**vars(PreparedData.open()), every=every), device_of(params.compute)
        self.teacher = self.compute.place(load_net(TEACHER / TEACHER_WEIGHTS)[0]).eval()

    def views(self, arm: Arm) -> ViewSpec:
        """Return the spec of the crops of `arm`."""
        stride, distill = self.params.teacher_logits.stride, self.params.distill
        return ViewSpec.of(self.data, distill.crop_px, arm.views, stride, self.params.seed, distill.scale_range)

    def cache(self, arm: Arm) -> TeacherCache | None:
        """Return the teacher's logits for `arm`, computed on first use; None for the control."""
        if arm.teacher == "none":
            return None
        folder = self.caches / f"{arm.teacher}-{arm.views}-{arm.dtype}"
        if not folder.exists():
            stored = self.params.teacher_logits.model_copy(update={"dtype": arm.dtype})
            build_cache(arm.teacher, folder, self.data.train, self.views(arm), stored, self.compute)
        return TeacherCache(arm.teacher, self.views(arm), folder)

    def settings(self, arm: Arm, seed: int, steps: int) -> StudentSettings:
        """Return the settings of one training of `arm`; the rate falls to 0, so the last step is no noisy one."""
        own = {"schedule": "poly", "steps": steps, "kl_resolution": arm.kl_resolution, "evaluate_every_steps": 0}
        run = {"student": STUDENT, "alpha": self.alpha, "lr": 0.01, "teacher": arm.teacher, "seed": seed}
        return StudentSettings(**self.params.distill.model_dump() | own | run)

    def distillation(self, arm: Arm, settings: StudentSettings) -> Distillation | None:
        """Return what `arm` adds to the label loss; None for the control."""
        if arm.teacher == "none":
            return None
        live_teacher = None
        if arm.teacher == "online":
            live_teacher = OnStoredGrid(self.teacher, self.params.teacher_logits.stride).eval()
        return Distillation(settings, self.compute, live_teacher)

    def start(self) -> Path:
        """Return the weights that all arms start from, as others start from ImageNet's; trained on first use."""
        weights = self.caches / "start.safetensors"
        if not weights.exists():
            arm, classes = Arm("none"), len(self.data.table)
            settings = self.settings(arm, self.params.seed, START_STEPS).model_copy(update={"init": "random"})
            net = initial_net(STUDENT, classes, settings, self.params.seed, "start")
            training = Training("distill/start", net, settings, self.views(arm), "random")
            _, checkpointer = run_training(training, self.params, self.data)
            save_net(weights, net, Header.of_net(STUDENT, classes, settings.output_stride))
            checkpointer.clear()
        return weights

    def live_over_cached(self, rounds: int = 15, stretch_steps: int = 3) -> float:
        """Return the time of a step with the live teacher over one with cached logits, the median of turns.

        Times depend on the networks and sizes, not on what the teacher has learned.
        """
        kinds = {}
        for name in ("live", "views-8"):
            arm = arms(1.0)[name]
            settings, cache, views = self.settings(arm, seed=0, steps=NEVER), self.cache(arm), self.views(arm)
            draws = (settings.batch_size, settings.flip_probability, settings.jitter)
            sampler = BatchSampler(0, "timed", views.frames, views.views, *draws)
            at = (views.origins(), views.crop_px, cache.stored)
            crops = CropLoader(self.data.train, sampler, *at, sizes=views.sizes())
            net = self.compute.place(build(STUDENT, len(self.data.table), settings.output_stride)).train()
            job = Job("timed", net, crops, settings, self.compute, self.distillation(arm, settings))
            kinds[name] = next_steps(job, stretch_steps)
        taken_s = seconds_in_turn(kinds, rounds)
        return float(np.median(taken_s["live"] / taken_s["views-8"]))

    def train(self, name: str, arm: Arm, seed: int, steps: int) -> dict:
        """Train one student of `arm` from the common start and return its scores on val."""
        steps, classes = round(steps * arm.steps_share), len(self.data.table)
        settings = self.settings(arm, seed, steps).model_copy(update={"init": str(self.start())})
        net = initial_net(STUDENT, classes, settings, seed, "start")
        cache, distillation = self.cache(arm), self.distillation(arm, settings)
        training = Training(f"distill/{name}-{seed}", net, settings, self.views(arm), "common", cache, distillation)
        _, checkpointer = run_training(training, self.params, self.data)
        evaluation = evaluate(
            TorchPredictor(net, self.compute),
            self.data.val,
            classes,
            batch_size=4,
            teacher_classes=ClassMapArchive(TEACHER / VAL_CLASSES),
        )
        checkpointer.clear()
        metrics = evaluation.metrics | {"crop_kl": self.crop_kl(net)}
        return {"arm": name, "seed": seed, "steps": steps} | {metric: metrics[metric] for metric in METRICS}

    @torch.inference_mode()
    def crop_kl(self, net: torch.nn.Module) -> float:
        """Return the mean KL(teacher || student) over one crop of each val frame, of the size of training crops."""
        val, crop_px = self.data.val, self.params.distill.crop_px
        views = ViewSpec("", len(val), val.size_px, crop_px, views=1, stride=4, seed=1)
        student, divergence = self.compute.place(net).eval(), []
        for frame, (top, left) in enumerate(views.origins()[:, 0]):
            crop = np.array(val.images[frame, top : top + crop_px[0], left : left + crop_px[1]])
            pixels = normalize(torch.from_numpy(crop)[None])
            divergence.append(float(kl(student(pixels), self.teacher(pixels), 1.0)))
        return float(np.mean(divergence))
