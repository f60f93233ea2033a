"""The students that are compared: where the crops and the logits of each come from, and what it scores."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from benchmarks.our_loop import NEVER, next_steps
from benchmarks.rows import seconds_in_turn
from segdistill.data.prepared import PREPARED, Split
from segdistill.data.sampling import BatchSampler, view_origins
from segdistill.data.teacher_cache import Teaching, geometry, origins_of
from segdistill.data.transforms import normalize
from segdistill.formats.header import Header
from segdistill.nets.device import TorchPredictor
from segdistill.nets.registry import build
from segdistill.nets.weights import load_net, save_net
from segdistill.params.model import Params, RunSettings
from segdistill.scoring.evaluate import evaluate
from segdistill.scoring.label_losses import kl
from segdistill.scoring.record import ClassMapArchive
from segdistill.teacher_logits.build import build_cache
from segdistill.training.batches import CropLoader
from segdistill.training.job import Data, device_of, initial_net, train_net
from segdistill.training.loop import Distillation, Job

START_STEPS = 500  # of the common start of all arms
TEACHER = Path("models/teacher")
FIGURES = ("mean_iou", "overall_acc", "teacher_agreement", "mean_loss", "crop_kl")
ANEW = 1024  # places per frame that crops are drawn from when nothing is stored for them


class Arm(NamedTuple):
    """What a student of this arm learns from; `steps_share` of the steps of the others."""

    teacher: str
    views: int = ANEW
    kl_resolution: str = "stride"
    dtype: str = "float16"
    steps_share: float = 1.0


def arms(live_over_cached: float) -> dict[str, Arm]:
    """All arms, the control first. `live_over_cached`: time of a live step over that of a cached one."""
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


class Study:
    """The prepared streets, the trained teacher, and the caches that the arms need."""

    def __init__(self, params: Params, alpha: float, every: int, caches: Path) -> None:
        self.params, self.alpha, self.caches = params, alpha, caches
        self.data, self.compute = Data(PREPARED), device_of(params.compute)
        train = self.data.train
        self.teacher = self.compute.place(load_net(TEACHER / "teacher.safetensors")[0]).eval()
        self.data.train = Split(train.images[::every], train.labels[::every], train.names[::every])

    def facts(self, arm: Arm) -> dict:
        """The geometry of the crops of `arm`."""
        stride, crop_px = self.params.teacher_logits.stride, self.params.distill.crop_px
        return geometry(self.data.train, self.data.fingerprint, self.params.seed, crop_px, arm.views, stride)

    def teaching(self, arm: Arm) -> Teaching | None:
        """The teacher's logits for `arm`, computed on first use."""
        if arm.teacher == "none":
            return None
        folder = self.caches / f"{arm.teacher}-{arm.views}-{arm.dtype}"
        if not folder.exists():
            stored = self.params.teacher_logits.model_copy(update={"dtype": arm.dtype})
            build_cache(arm.teacher, folder, self.data.train, self.facts(arm), stored, self.compute)
        return Teaching(arm.teacher, self.facts(arm), folder)

    def settings(self, arm: Arm, seed: int, steps: int) -> RunSettings:
        """One training of `arm`. The rate falls to 0, so that what is scored is no moment of a noisy path."""
        own = {"schedule": "poly", "steps": steps, "kl_resolution": arm.kl_resolution, "evaluate_every_steps": 0}
        run = {"alpha": self.alpha, "lr": 0.01, "teacher": arm.teacher, "seed": seed}
        return RunSettings(**(self.params.distill.model_dump() | own | run))

    def start(self) -> Path:
        """Weights that all arms start from, trained without a teacher on first use: the part of ImageNet's weights."""
        weights = self.caches / "start.safetensors"
        if not weights.exists():
            arm = Arm("none")
            settings = self.settings(arm, self.params.seed, START_STEPS)
            classes = len(self.data.class_names)
            net = initial_net(settings.student, classes, settings.output_stride, "random", self.params.seed, "start")
            job = {"lr": settings.lr, "seed": self.params.seed, "params": self.params, "data": self.data}
            train_net("distill/start", net, settings, self.facts(arm), start="random", **job)
            save_net(weights, net, Header.of_net(settings.student, classes, settings.output_stride))
        return weights

    def live_over_cached(self, rounds: int = 15, stretch_steps: int = 3) -> float:
        """Time of a step with the live teacher over one with cached logits: median of stretches taken in turn.

        Times depend on the networks and sizes, not on what the teacher has learned.
        """
        kinds = {arm: next_steps(self._job(arms(1.0)[arm]), stretch_steps) for arm in ("live", "views-8")}
        taken_s = seconds_in_turn(kinds, rounds)
        return float(np.median(taken_s["live"] / taken_s["views-8"]))

    def _job(self, arm: Arm) -> Job:
        """A training of `arm` that is not begun."""
        settings, teaching, facts = self.settings(arm, seed=0, steps=NEVER), self.teaching(arm), self.facts(arm)
        batches = BatchSampler(
            0, "timed", len(self.data.train), arm.views, settings.batch_size, settings.flip_probability, settings.jitter
        )
        crops = CropLoader(self.data.train, batches, origins_of(facts), settings.crop_px, teaching.stored)
        net = build(settings.student, len(self.data.class_names), settings.output_stride)
        live = teaching.live_teacher(self.compute)
        distillation = Distillation(self.alpha, settings.method, settings.temperature, arm.kl_resolution, live)
        return Job("timed", self.compute.place(net).train(), crops, settings, settings.lr, self.compute, distillation)

    def train(self, name: str, arm: Arm, seed: int, steps: int) -> dict:
        """Train one student of `arm` from the common start and score it on val."""
        steps = round(steps * arm.steps_share)
        settings, teaching = self.settings(arm, seed, steps), self.teaching(arm)
        net = initial_net(
            settings.student, len(self.data.class_names), settings.output_stride, str(self.start()), seed, "start"
        )
        distillation = teaching and Distillation(
            self.alpha, settings.method, settings.temperature, arm.kl_resolution, teaching.live_teacher(self.compute)
        )
        job = {"lr": settings.lr, "seed": seed, "start": "common", "params": self.params, "data": self.data}
        _, scratch = train_net(
            f"distill/{name}-{seed}",
            net,
            settings,
            self.facts(arm),
            **job,
            teaching=teaching,
            distillation=distillation,
        )
        figures, _ = evaluate(
            TorchPredictor(net, self.compute),
            self.data.val,
            len(self.data.class_names),
            batch_size=4,
            teacher_classes=ClassMapArchive(TEACHER / "val_classes.npz"),
        )
        scratch.clear()
        figures["crop_kl"] = self.crop_kl(net)
        return {"arm": name, "seed": seed, "steps": steps} | {figure: figures[figure] for figure in FIGURES}

    @torch.inference_mode()
    def crop_kl(self, net: nn.Module) -> float:
        """Mean KL(teacher || student) over one crop of each val frame, of the size that students are trained on."""
        val, crop_px = self.data.val, self.params.distill.crop_px
        corners = view_origins(1, len(val), 1, val.size_px, crop_px, stride=4)[:, 0]
        student, divergence = self.compute.place(net).eval(), []
        for frame, (top, left) in enumerate(corners):
            crop = np.array(val.images[frame, top : top + crop_px[0], left : left + crop_px[1]])
            pixels = normalize(torch.from_numpy(crop)[None])
            divergence.append(float(kl(student(pixels), self.teacher(pixels), 1.0)))
        return float(np.mean(divergence))
