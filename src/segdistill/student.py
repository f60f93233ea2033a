"""The students: distilled first, finetuned then. A control goes the same way without a teacher."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from segdistill.base.files import write_json
from segdistill.base.params import Params, RunSettings
from segdistill.frames.dataset import PREPARED
from segdistill.logits.teacher_cache import Teaching, geometry
from segdistill.nets.checkpoint import load_net, net_facts, save_net
from segdistill.progress import write_curve
from segdistill.provenance import file_sha256, git_revision
from segdistill.scoring.class_maps import write_pictures
from segdistill.scoring.evaluate import Evaluation, TorchPredictor, evaluate, spread
from segdistill.scoring.metrics_file import figures_on_disk
from segdistill.training.holdout import keep_pictures
from segdistill.training.scratch import Scratch
from segdistill.training.train_loop import CURVE_COLUMNS, Distillation
from segdistill.training.training_job import (
    Data,
    compute_of,
    initial_net,
    start_of,
    train_net,
    warn_if_unseen,
    watch_of,
)
from segdistill.val_record import ValRecorder

MODELS = Path("models/runs")
METRICS = Path("metrics/runs")
INITIAL_WEIGHTS = "initial_weights"  # what `distill` depends on beside the data and the logits


def distill(params: Params, run: str) -> None:
    """Train the student of `run` for its first steps; write models/runs/RUN/distilled.safetensors and its metrics."""
    settings, data = params.distill_settings(run), Data(PREPARED)
    data.check_crop("distill.crop_px", settings.crop_px)
    net = initial_net(
        settings.student,
        len(data.class_names),
        settings.output_stride,
        settings.init,
        settings.seed,
        f"runs.{run}.init",
    )
    start = start_of(settings.init)
    if start != settings.init:
        warn_if_unseen(f"runs.{run}.init", settings.init, INITIAL_WEIGHTS)
    training = _StudentTraining(params, run, "distill", settings, data)
    curve, scratch = training.train(net, start=start)
    training.keep_pictures(net, scratch)
    training.write(net, settings.steps, curve, MODELS / run / "distilled.safetensors", finished=False)
    scratch.clear()


def finetune(params: Params, run: str) -> None:
    """Train the distilled student of `run` further and write models/runs/RUN/finetuned.safetensors and its metrics."""
    (settings, steps), data = params.finetune_settings(run), Data(PREPARED)
    distilled = MODELS / run / "distilled.safetensors"
    net, _ = load_net(distilled, net_facts(settings.student, len(data.class_names), settings.output_stride))
    training = _StudentTraining(params, run, "finetune", settings, data)
    curve, scratch = [], None
    if steps:
        curve, scratch = training.train(net, start=file_sha256(distilled))
    training.keep_pictures(net, scratch)
    training.write(net, steps, curve, MODELS / run / "finetuned.safetensors", finished=True)
    if scratch:
        scratch.clear()


class _StudentTraining:
    """What both phases of a run share."""

    def __init__(self, params: Params, run: str, phase: str, settings: RunSettings, data: Data) -> None:
        self.params, self.run, self.phase, self.settings, self.data = params, run, phase, settings, data
        logits = params.teacher_logits
        self.facts = geometry(data.train, data.fingerprint, params.seed, settings.crop_px, logits.views, logits.stride)
        self.teaching = None if settings.teacher == "none" else Teaching(settings.teacher, self.facts)

    def train(self, net: nn.Module, start: str) -> tuple[list[dict], Scratch]:
        settings, distillation = self.settings, None
        # With alpha 0 in finetune a run goes on as a control would.
        if self.teaching is not None and settings.alpha > 0:
            live = self.teaching.live_teacher(compute_of(self.params))
            distillation = Distillation(settings.alpha, settings.method, settings.temperature, settings.kl_at, live)
        return train_net(
            f"{self.phase}/{self.run}",
            net,
            settings,
            self.facts,
            lr=settings.lr,
            seed=settings.seed,
            start=start,
            params=self.params,
            data=self.data,
            teaching=self.teaching if distillation else None,
            distillation=distillation,
        )

    def keep_pictures(self, net: nn.Module, scratch: Scratch | None) -> None:
        def of_given(folder: Path) -> None:
            watch_of(self.params, self.data, self.settings, folder).picture_start(net)

        keep_pictures(scratch and scratch.folder, METRICS / self.run / f"{self.phase}_pictures", of_given)

    def write(self, net: nn.Module, steps: int, curve: list[dict], weights: Path, finished: bool) -> None:
        names, metrics = self.data.class_names, METRICS / self.run
        recorder = ValRecorder(self.data.table, self.data.val.names) if finished else None
        figures, kept = self._evaluate(net, recorder)
        facts = net_facts(self.settings.student, self.data.table, self.settings.output_stride) | {
            "params": self.settings.model_dump(mode="json"),
            "seed": self.settings.seed,
            "step": steps,
            "teacher_sha256": self.teaching.manifest["teacher_sha256"] if self.teaching else None,
            "git_revision": git_revision(),
        }
        save_net(weights, net, facts)
        write_curve(metrics / f"{self.phase}_curve.csv", CURVE_COLUMNS, curve)
        if recorder:
            pictures_by_name = {f"{index:05d}_student": kept[index] for index in kept}
            write_pictures(metrics / "pictures", pictures_by_name, self.data.table)
            recorder.write(metrics / "val")
        extra = {
            "parameters": sum(p.numel() for p in net.parameters()),
            "weights_sha256": file_sha256(weights),
            "data_fingerprint": self.data.fingerprint,
        }
        write_json(metrics / f"{self.phase}.json", figures_on_disk(figures, names) | extra)

    def _evaluate(self, net: nn.Module, recorder: ValRecorder | None) -> Evaluation:
        val, settings = self.data.val, self.settings
        return evaluate(
            TorchPredictor(net, compute_of(self.params).in_float32()),
            val,
            len(self.data.class_names),
            self.params.evaluation.batch_size,
            loss_kind=settings.label_loss,
            focal_gamma=settings.focal_gamma,
            # A control depends on no teacher, so its agreement is measured later, by export-onnx.
            teacher_classes=self.teaching.val_classes if self.teaching else None,
            keep=spread(len(val), self.params.evaluation.pictures) if recorder else None,
            on_frame=recorder.add if recorder else None,
        )
