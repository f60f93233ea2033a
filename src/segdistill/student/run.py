"""The students: distil, then finetune. A control trains for the same steps without a teacher."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from segdistill.core.errors import UserError
from segdistill.core.files import write_json
from segdistill.core.provenance import file_sha256, git_revision
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import TeacherCache
from segdistill.formats.curve import write_curve
from segdistill.formats.header import Header
from segdistill.nets.device import TorchPredictor, device_of
from segdistill.nets.features import HasFeatures
from segdistill.nets.registry import shipped_parameters
from segdistill.nets.weights import load_net, save_net
from segdistill.parallel import ranks
from segdistill.params.model import Params, StudentSettings
from segdistill.paths import (
    DISTILLED,
    FINETUNED,
    INITIAL_WEIGHTS,
    TEACHER_WEIGHTS,
    VAL_CLASSES,
    run_metrics,
    run_models,
)
from segdistill.scoring.evaluate import LabelLoss, evaluate, evenly_spaced
from segdistill.scoring.record import ClassMapArchive, ValRecorder, metrics_on_disk, write_images
from segdistill.scoring.unseen import score_unseen
from segdistill.student.distillation import Distillation, OnStoredGrid, add_feature_projection
from segdistill.student.teacher_strength import warn_of_weak_teacher
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.holdout import HoldoutEvaluator, keep_images
from segdistill.training.job import Training, init_fingerprint, initial_net, run_training, warn_if_unseen


def distill(params: Params, run: str) -> None:
    """Train the student of `run` for its first steps; write models/runs/RUN/distilled.safetensors and its metrics."""
    settings, data = params.distill_settings(run), PreparedData.open()
    data.check_crop("distill", settings.crop_px, settings.scale_range)
    net = initial_net(settings.network, len(data.table), settings, settings.seed, f"runs.{run}.init")
    start = init_fingerprint(settings.init)
    if start != settings.init:
        warn_if_unseen(f"runs.{run}.init", settings.init, INITIAL_WEIGHTS)
    _train_and_write(params, run, "distill", settings, data, net, start)


def finetune(params: Params, run: str) -> None:
    """Train the distilled student of `run` further; write models/runs/RUN/finetuned.safetensors and its metrics."""
    settings, data = params.finetune_settings(run), PreparedData.open()
    distilled = run_models(run) / DISTILLED
    net, _ = load_net(distilled, Header.of_net(settings.network, len(data.table), settings.output_stride))
    _train_and_write(params, run, "finetune", settings, data, net, file_sha256(distilled))


def _train_and_write(
    params: Params,
    run: str,
    phase: str,
    settings: StudentSettings,
    data: PreparedData,
    net: nn.Module,
    start: str,
) -> None:
    """Train one phase of a run, evaluate it on val, and write its weights, curve, metrics and images."""
    is_last, metrics, compute = phase == "finetune", run_metrics(run), device_of(params.compute)
    logits = params.teacher_logits
    views = ViewSpec.of(data, settings.crop_px, logits.views, logits.stride, params.seed, settings.scale_range)
    cache = None if settings.teacher == "none" else TeacherCache(settings.teacher, views)
    # Open these before the training: after hours of it a missing file would be found too late.
    val, _ = data.val, data.unseen
    teacher_classes = None if cache is None else ClassMapArchive(cache.folder / VAL_CLASSES)

    if cache is not None and phase == "distill" and ranks.is_first():
        warn_of_weak_teacher(params, run, cache.manifest.teacher_sha256, data.fingerprint)

    curve: list[dict] = []
    checkpointer: Checkpointer | None = None
    if settings.steps:
        distillation = projection = None
        if settings.feature_weight:
            assert cache is not None, "params.read checks it"
            projection = _feature_projection(net, cache, settings, run)
        # With a distillation weight of 0 in finetune a run continues as a control would.
        if cache is not None and settings.loss_weights.distill > 0:
            live_teacher = None
            if cache.kind == "online":
                teacher, _ = load_net(cache.folder / TEACHER_WEIGHTS)
                live_teacher = OnStoredGrid(compute.place(teacher), views.stride).eval()
            distillation = Distillation(settings, compute, live_teacher, projection)
        batch_cache = cache if distillation else None
        training = Training(f"{phase}/{run}", net, settings, views, start, cache=batch_cache, distillation=distillation)
        curve, checkpointer = run_training(training, params, data)
        if projection is not None:  # it is of use to the training alone
            del net.feature_projection

    def save_given(folder: Path) -> None:
        HoldoutEvaluator(params, data, settings, folder).save_start(net)

    if ranks.is_first():
        keep_images(checkpointer.folder if checkpointer else None, metrics / f"{phase}_images", save_given)

    recorder = ValRecorder(data.table, val.names, data.frame_groups["val"]) if is_last else None
    predictor, batch_size = TorchPredictor(net, compute.in_float32()), params.evaluation.batch_size
    loss = LabelLoss.of(settings)
    evaluation = evaluate(
        predictor,
        val,
        len(data.table),
        batch_size,
        loss=loss,
        # A control depends on no teacher, so export-onnx measures its agreement later.
        teacher_classes=teacher_classes,
        keep=evenly_spaced(len(val), params.evaluation.images) if recorder else None,
        on_frame=recorder.add if recorder else None,
    )
    on_unseen, unseen_recorder = score_unseen(predictor, data, batch_size, loss) if is_last else ({}, None)
    if not ranks.is_first():
        ranks.wait()  # until the first rank has written what all may read next
        return
    header = Header.of_net(settings.network, data.table, settings.output_stride).with_history(
        params=settings.model_dump(mode="json"),
        seed=settings.seed,
        step=settings.steps,
        teacher_sha256=cache.manifest.teacher_sha256 if cache else None,
        git_revision=git_revision(),
    )
    weights = run_models(run) / (FINETUNED if is_last else DISTILLED)
    save_net(weights, net, header)
    write_curve(metrics / f"{phase}_curve.csv", curve)
    if recorder:
        images = {f"{index:05d}_student": classes_HW for index, classes_HW in evaluation.classes.items()}
        write_images(metrics / "images", images, data.table)
        recorder.write(metrics / "val", unseen_recorder)
    facts = {
        "parameters": shipped_parameters(net),
        "weights_sha256": file_sha256(weights),
        "data_fingerprint": data.fingerprint,
        "training_precision": compute.precision if settings.steps else None,
    }
    write_json(metrics / f"{phase}.json", metrics_on_disk(evaluation.metrics, data.table.names) | facts | on_unseen)
    if checkpointer:
        checkpointer.clear()
    ranks.wait()


def _feature_projection(net: nn.Module, cache: TeacherCache, settings: StudentSettings, run: str) -> nn.Module:
    """Add to `net` the projection of its features to those in `cache`, and return it.

    Raises:
        UserError: the cache or the network has no features.
    """
    found = f"runs.{run}.feature_weight: found {settings.feature_weight}"
    if cache.features is None:
        remedy = "set teacher_logits.feature_channels and run: dvc repro teacher-logits"
        raise UserError(f"{found}; {cache.folder} has no features of the teacher; {remedy}, or allowed is 0")
    if not isinstance(net, HasFeatures):
        raise UserError(f"{found}; the network {settings.network} has no method features_and_logits, and allowed is 0")
    return add_feature_projection(net, cache.features.channels, settings.seed)
