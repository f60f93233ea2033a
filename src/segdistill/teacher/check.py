"""Load or train the teacher, check it on val, and store it with its class maps, which measure agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory, write_json
from segdistill.core.log import logger
from segdistill.core.provenance import git_revision
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import teacher_sha256
from segdistill.formats.classes import ClassTable
from segdistill.formats.curve import write_curve
from segdistill.formats.header import Header, header_if_any
from segdistill.nets.device import device_of
from segdistill.nets.registry import build_uninitialized
from segdistill.nets.weights import check_rebuilds, check_values, load_state, read_weights
from segdistill.parallel import ranks
from segdistill.params.archs import network_file, split_network
from segdistill.params.model import Params, is_onnx
from segdistill.paths import CHECKPOINTS, METRICS, MODELS, VAL_CLASSES
from segdistill.scoring.evaluate import LabelLoss, evaluate, evenly_spaced
from segdistill.scoring.record import ValRecorder, metrics_on_disk, write_archive, write_images
from segdistill.scoring.unseen import score_unseen
from segdistill.teacher.model import WHOLE, TorchMember, open_teacher, write_folds, write_members
from segdistill.training.checkpoint import FOLD_TRAININGS, Checkpointer
from segdistill.training.holdout import HoldoutEvaluator, keep_images
from segdistill.training.job import Training, built_net, init_fingerprint, initial_net, run_training, warn_if_unseen

# Places per frame from which the teacher's own crops are drawn; nothing is stored for them.
CROPS_PER_FRAME = 1024


def check_teacher(params: Params, models: Path = MODELS, metrics: Path = METRICS) -> None:
    """Load or train the teacher, score it on val, and write it with its metrics, curve, class maps and images.

    Raises:
        UserError: a checkpoint does not fit or gives logits that are not finite, or val mIoU is under
            `teacher.min_mean_iou`, or the network of a student cannot be. Nothing was replaced by then.
    """
    data, teacher, compute = PreparedData.open(), params.teacher, device_of(params.compute)
    val, _ = data.val, data.unseen  # opened before a training: after hours of it a damaged file would be found too late
    students = {run: params.distill_settings(run) for run in params.runs}
    run_of_network = {(settings.network, settings.output_stride): run for run, settings in students.items()}
    # A network that cannot be is found before the teacher's training, too.
    for (network, output_stride), run in run_of_network.items():
        built_net(network, len(data.table), output_stride, f"runs.{run}")
    made = _members_given(params, data) if teacher.checkpoints else _members_trained(params, data)

    shown = evenly_spaced(len(val), params.evaluation.images)
    class_maps: dict[int, np.ndarray] = {}
    val_groups = data.frame_groups["val"]
    recorder = ValRecorder(data.table, val.names, val_groups)

    def keep(index: int, classes_HW: np.ndarray, counts_CC: np.ndarray) -> None:
        class_maps[index] = classes_HW
        recorder.add(index, classes_HW, counts_CC)
        # Photograph and truth are in the teacher's record only, once for all models.
        recorder.add_image(index, "image", np.asarray(val.images[index]))
        recorder.add_image(index, "truth", np.asarray(val.labels[index]))

    with ranks.written_by_first(atomic_directory(models / "teacher")) as folder:
        if ranks.is_first():
            write_members(folder, made.members, len(data.table), teacher)
            if made.folds:
                write_folds(folder, made.folds, made.fold_of_frame, len(data.table), teacher)
        ranks.wait()
        # Opened from disk, so that what is scored is what `teacher-logits` opens.
        opened = open_teacher(folder, compute.in_float32())
        loss, batch_size = LabelLoss.of(teacher), params.evaluation.batch_size
        evaluation = evaluate(opened.predict, val, len(data.table), batch_size, loss=loss, on_frame=keep)
        on_disk = metrics_on_disk(evaluation.metrics, data.table.names)
        _stop_if_weak(evaluation.metrics, data.table.names, teacher.min_mean_iou)
        on_unseen, unseen_recorder = score_unseen(opened.predict, data, batch_size, loss)
        if ranks.is_first():
            write_archive(folder / VAL_CLASSES, class_maps)
    if not ranks.is_first():
        return

    write_curve(metrics / "teacher_curve.csv", made.curve)

    def save_given(folder: Path) -> None:
        HoldoutEvaluator(params, data, teacher, folder).save_given(opened.predict)

    checkpoint = made.checkpointers[0].folder if made.checkpointers else None
    keep_images(checkpoint, metrics / "teacher_images", save_given)
    images = {}
    for index in shown:
        images[f"{index:05d}_image"] = np.asarray(val.images[index])
        images[f"{index:05d}_truth"] = np.asarray(val.labels[index])
        images[f"{index:05d}_teacher"] = class_maps[index]
    write_images(metrics / "images", images, data.table)
    recorder.write(metrics / "val", unseen_recorder)
    facts: dict[str, Any] = {
        "arch": opened.description,
        "parameters": opened.parameters,
        "weights_sha256": teacher_sha256(models / "teacher"),
        "data_fingerprint": data.fingerprint,
        "training_precision": None if teacher.checkpoints else compute.precision,
        # What a gain on val can be generalised to: see results/gains.py.
        "val_groups": len(set(val_groups)),
        "val_groups_in_train": len({*val_groups} & {*data.frame_groups["train"], *data.frame_groups["holdout"]}),
        "unseen_groups": len(set(data.frame_groups.get("unseen", ()))),
    }
    if made.folds:
        in_a_fold = made.fold_of_frame[made.fold_of_frame != WHOLE]
        facts["cross_fit"] = {"folds": len(made.folds), "frames": np.bincount(in_a_fold).tolist()}
    write_json(metrics / "teacher.json", on_disk | facts | on_unseen)
    for checkpointer in made.checkpointers:
        checkpointer.clear()


class _Made(NamedTuple):
    """The networks of a teacher, and what their trainings left.

    Attributes:
        members: of the teacher itself.
        curve: of its training; empty without one.
        folds: of a cross-fitted teacher, the teacher of each fold.
        fold_of_frame: the fold of each train frame, int (N,).
        checkpointers: of the trainings, the teacher's own, then those of its folds.
    """

    members: Sequence[TorchMember | Path]
    curve: Sequence[dict] = ()
    folds: Sequence[TorchMember] = ()
    fold_of_frame: np.ndarray = np.empty(0, int)
    checkpointers: Sequence[Checkpointer] = ()


def _members_given(params: Params, data: PreparedData) -> _Made:
    """Return the files of `teacher.checkpoint` as members."""
    members = [_given_member(params, data.table, file) for file in params.teacher.checkpoints]
    for file in params.teacher.checkpoints:
        warn_if_unseen("teacher.checkpoint", file, CHECKPOINTS)
    return _Made(members)


def _members_trained(params: Params, data: PreparedData) -> _Made:
    """Train the teacher, and that of each fold on the frames of the others."""
    groups, cross_fit = data.frame_groups["train"], params.teacher.cross_fit
    labelled = len(groups) - data.unlabelled_frames
    # No teacher sees the frames without labels, which come last; the one of all others gives their logits.
    fold_of_frame = np.full(len(groups), WHOLE)
    fold_of_frame[:labelled] = fold_of_frames(groups[:labelled], cross_fit or 1)
    # Each keeps its checkpoint until all are written: after a kill no finished training runs again.
    member, curve, checkpointer = _train(params, data)
    folds, checkpointers = [], [checkpointer]
    for fold in range(fold_of_frame.max() + 1 if cross_fit else 0):
        others = np.flatnonzero(fold_of_frame[:labelled] != fold)
        of_fold, _, checkpointer = _train(params, data, f"{FOLD_TRAININGS}/{fold}", others)
        folds.append(of_fold)
        checkpointers.append(checkpointer)
    return _Made([member], curve, folds, fold_of_frame, checkpointers)


def _given_member(params: Params, table: ClassTable, file: str) -> TorchMember | Path:
    """Return a file of `teacher.checkpoint` as a member, checked to give logits for the classes of the data."""
    teacher = params.teacher
    if is_onnx(file):
        from segdistill.teacher.onnx_teacher import OnnxTeacher  # here: only ONNX teachers need onnxruntime

        header = OnnxTeacher(file, len(table), 1, teacher.onnx_mean, teacher.onnx_std).header
        _check_classes(file, header, table)
        return Path(file)
    state, header = read_weights(file, "teacher.checkpoint"), header_if_any(file)
    _check_classes(file, header, table)
    arch: str = teacher.network
    output_stride: int = teacher.output_stride
    if isinstance(teacher.checkpoint, tuple) and header:  # networks of a list may differ; our files name theirs
        arch, output_stride = header.arch, header.output_stride
    if (own_file := network_file(split_network(arch)[0])) != network_file(teacher.arch):
        # The stages that run the teacher depend on the file of teacher.arch alone.
        logger.warning(
            "teacher.checkpoint: DVC does not see changes to %s, the network of %s; where you edit that file, name it "
            "in teacher.arch, or force the stage (dvc repro -f -s teacher-check)",
            *(own_file, file),
        )
    net = build_uninitialized(arch, len(table), output_stride)
    load_state(net, state, source=file)
    check_values(state, source=file)
    check_rebuilds(net, arch, len(table), output_stride)
    return TorchMember(net, _header(params, table, arch, output_stride))


def _check_classes(file: str, header: Header | None, table: ClassTable) -> None:
    """Refuse a file whose header names other classes; most files name none."""
    if header and header.table and header.table.names != table.names:
        raise UserError(
            f"teacher.checkpoint: {file}: found the classes {', '.join(header.table.names)}; "
            f"allowed are those of the data, in their order: {', '.join(table.names)}"
        )


def _header(params: Params, table: ClassTable, arch: str, output_stride: int) -> Header:
    teacher = params.teacher
    return Header.of_net(arch, table, output_stride).with_history(
        # A lower min_mean_iou must not change the teacher's file, nor do further teachers, nor how often a training is
        # saved: the logits would be computed again, and all students trained.
        params=teacher.model_dump(mode="json", exclude={"min_mean_iou", "cross_fit", "checkpoint_every_steps"}),
        seed=params.seed,
        step=0 if teacher.checkpoints else teacher.steps,
        # A given teacher does not come from this code: with a revision in it, any commit would change the file, and
        # the logits would be computed again.
        git_revision=None if teacher.checkpoints else git_revision(),
    )


def fold_of_frames(groups: Sequence[str], folds: int) -> np.ndarray:
    """Return the fold of each frame, int (N,), from the city or recording of each.

    A group is in one fold, and folds have about as many frames. With fewer groups than folds each group is one. Where
    the data has a single group, or none, folds are blocks of neighbouring frames, because those resemble one another.

    Raises:
        UserError: there are fewer frames than folds.
    """
    frames_of = Counter(groups)
    if len(frames_of) in (1, len(groups)):
        if folds > len(groups):
            raise UserError(f"teacher.cross_fit: found {folds}; the data has {len(groups)} train frames")
        return np.arange(len(groups)) * folds // len(groups)
    sizes, fold_of = [0] * min(folds, len(frames_of)), {}
    for group, frames in frames_of.most_common():  # of groups of one size, the first one in the data comes first
        fold_of[group] = sizes.index(min(sizes))
        sizes[fold_of[group]] += frames
    return np.array([fold_of[group] for group in groups])


def _train(
    params: Params, data: PreparedData, name: str = "teacher", frames: np.ndarray | None = None
) -> tuple[TorchMember, list[dict], Checkpointer]:
    settings = params.teacher_settings()
    data.check_crop("teacher", settings.crop_px, settings.scale_range)
    net = initial_net(settings.network, len(data.table), settings, settings.seed, "teacher.init")
    start = init_fingerprint(settings.init)
    if start != settings.init:
        warn_if_unseen("teacher.init", settings.init, CHECKPOINTS)
    views = ViewSpec.of(data, settings.crop_px, CROPS_PER_FRAME, 1, settings.seed, settings.scale_range)
    training = Training(name, net, settings, views, start, frames=frames)
    curve, checkpointer = run_training(training, params, data)
    return TorchMember(net, _header(params, data.table, settings.network, settings.output_stride)), curve, checkpointer


def _stop_if_weak(metrics: dict, class_names: tuple[str, ...], least: float) -> None:
    found = metrics["mean_iou"] or 0.0
    if found >= least:
        return
    rows = [
        f"  {name:<16} {'-' if iou is None else f'{iou:.3f}'}"
        for name, iou in zip(class_names, metrics["class_iou"], strict=True)
    ]
    remedy = "  train it longer, give a better teacher.checkpoint, or lower teacher.min_mean_iou"
    weak = f"teacher.min_mean_iou: the teacher's val mIoU is {found:.4f}, at least {least} is required"
    raise UserError("\n".join([weak, *rows, remedy]))
