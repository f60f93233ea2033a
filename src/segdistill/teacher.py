"""The teacher: given or trained, checked against val, kept with the class maps that agreement is measured by."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from segdistill.base.class_table import ClassTable
from segdistill.base.errors import InputError
from segdistill.base.files import atomic_directory, write_json
from segdistill.base.params import Params, is_onnx
from segdistill.frames.dataset import PREPARED
from segdistill.logits.teacher_cache import VAL_CLASSES, geometry, teacher_sha256
from segdistill.nets.adapters import check_values, load_state
from segdistill.nets.checkpoint import net_facts, own_facts
from segdistill.nets.registry import build_to_load
from segdistill.progress import write_curve
from segdistill.provenance import git_revision
from segdistill.scoring.class_maps import write_archive, write_pictures
from segdistill.scoring.evaluate import evaluate, spread
from segdistill.scoring.metrics_file import figures_on_disk
from segdistill.teachers.teacher_folder import TorchMember, open_teacher, write_members
from segdistill.training.holdout import keep_pictures
from segdistill.training.scratch import Scratch
from segdistill.training.train_loop import CURVE_COLUMNS
from segdistill.training.training_job import (
    Data,
    compute_of,
    initial_net,
    read_weights,
    start_of,
    train_net,
    warn_if_unseen,
    watch_of,
)
from segdistill.val_record import ValRecorder

# Places per frame that the teacher's own crops are drawn from; nothing is stored for them.
CROPS_PER_FRAME = 1024
CHECKPOINTS = "checkpoints"  # what `teacher-check` depends on beside the data


def check_teacher(params: Params, models: Path = Path("models"), metrics: Path = Path("metrics")) -> None:
    """Load or train the teacher, score it on val, and write it with its metrics, curve, class maps and pictures.

    Raises:
        InputError: a checkpoint does not fit or gives logits that are not finite, or val mIoU is under
            `teacher.min_mean_iou`. Nothing was replaced by then.
    """
    data, teacher = Data(PREPARED), params.teacher
    class_maps: dict[int, np.ndarray] = {}
    shown = spread(len(data.val), params.evaluation.pictures)
    recorder = ValRecorder(data.table, data.val.names)
    members, curve, scratch = _members(params, data)
    with atomic_directory(models / "teacher") as folder:
        write_members(folder, members, len(data.table), teacher)
        # Opened from disk, so that what is scored is what `teacher-logits` opens.
        opened = open_teacher(folder, compute_of(params).in_float32())
        figures, _ = evaluate(
            opened.predict,
            data.val,
            len(data.table),
            params.evaluation.batch_size,
            loss_kind=teacher.label_loss,
            focal_gamma=teacher.focal_gamma,
            on_frame=partial(_keep, data, class_maps, recorder),
        )
        on_disk = figures_on_disk(figures, data.class_names)
        _stop_if_weak(figures, data.class_names, teacher.min_mean_iou)
        write_archive(folder / VAL_CLASSES, class_maps)
    write_curve(metrics / "teacher_curve.csv", CURVE_COLUMNS, curve)
    keep_pictures(
        scratch and scratch.folder,
        metrics / "teacher_pictures",
        lambda folder: watch_of(params, data, teacher, folder).picture_given(opened.predict),
    )
    write_pictures(metrics / "pictures", _pictures(data, shown, class_maps), data.table)
    recorder.write(metrics / "val")
    extra = {
        "arch": opened.described,
        "parameters": opened.parameters,
        "weights_sha256": teacher_sha256(models / "teacher"),
        "data_fingerprint": data.fingerprint,
    }
    write_json(metrics / "teacher.json", on_disk | extra)
    if scratch:
        scratch.clear()


def _members(params: Params, data: Data) -> tuple[list[TorchMember | Path], list[dict], Scratch | None]:
    """What the teacher is made of: the given files, or a network trained here with its curve and scratch folder."""
    teacher = params.teacher
    if teacher.checkpoints:
        members = [_given(params, data.table, file) for file in teacher.checkpoints]
        for file in teacher.checkpoints:
            warn_if_unseen("teacher.checkpoint", file, CHECKPOINTS)
        return members, [], None
    net, curve, scratch = _trained(params, data)
    return [TorchMember(net, _facts(params, data.table, teacher.arch, teacher.output_stride))], curve, scratch


def _given(params: Params, table: ClassTable, file: str) -> TorchMember | Path:
    """A file of `teacher.checkpoint`, checked to give logits for the classes of the data."""
    teacher = params.teacher
    if is_onnx(file):
        from segdistill.teachers.onnx_teacher import OnnxTeacher  # here, as onnxruntime is for those who need it

        _check_classes(file, OnnxTeacher(file, len(table), 1, teacher.onnx_mean, teacher.onnx_std).facts, table)
        return Path(file)
    state, own = read_weights(file, "teacher.checkpoint"), own_facts(file)
    _check_classes(file, own, table)
    arch, output_stride = teacher.arch, teacher.output_stride
    if isinstance(teacher.checkpoint, tuple):  # networks of a list may differ, and files of ours say what they hold
        arch, output_stride = own.get("arch", arch), own.get("output_stride", output_stride)
    net = build_to_load(arch, len(table), output_stride)
    load_state(net, state, source=file)
    check_values(state, source=file)
    return TorchMember(net, _facts(params, table, arch, output_stride))


def _check_classes(file: str, facts: dict, table: ClassTable) -> None:
    """Refuse a file that says of itself that its classes are others; most files say nothing."""
    names = facts.get("class_names", table.names)
    if tuple(names) != table.names:
        raise InputError(
            f"teacher.checkpoint: {file}: found the classes {', '.join(names)}; "
            f"allowed are those of the data, in their order: {', '.join(table.names)}"
        )


def _facts(params: Params, table: ClassTable, arch: str, output_stride: int) -> dict:
    teacher = params.teacher
    return net_facts(arch, table, output_stride) | {
        "params": teacher.model_dump(mode="json"),
        "seed": params.seed,
        "step": 0 if teacher.checkpoints else teacher.steps,
        "git_revision": git_revision(),
    }


def _trained(params: Params, data: Data) -> tuple[nn.Module, list[dict], Scratch]:
    teacher = params.teacher
    data.check_crop("teacher.crop_px", teacher.crop_px)
    net = initial_net(
        teacher.arch, len(data.class_names), teacher.output_stride, teacher.init, params.seed, "teacher.init"
    )
    start = start_of(teacher.init)
    if start != teacher.init:
        warn_if_unseen("teacher.init", teacher.init, CHECKPOINTS)
    facts = geometry(data.train, data.fingerprint, params.seed, teacher.crop_px, CROPS_PER_FRAME, stride=1)
    curve, scratch = train_net(
        "teacher", net, teacher, facts, lr=teacher.lr, seed=params.seed, start=start, params=params, data=data
    )
    return net, curve, scratch


def _stop_if_weak(figures: dict, class_names: list[str], least: float) -> None:
    found = figures["mean_iou"] or 0.0
    if found >= least:
        return
    rows = [
        f"  {name:<16} {'-' if iou is None else f'{iou:.3f}'}"
        for name, iou in zip(class_names, figures["class_iou"], strict=True)
    ]
    raise InputError(
        f"teacher.min_mean_iou: the teacher's val mIoU is {found:.4f}, at least {least} is asked for\n"
        + "\n".join([*rows, "  train it longer, give a better teacher.checkpoint, or lower teacher.min_mean_iou"])
    )


def _keep(
    data: Data,
    class_maps: dict[int, np.ndarray],
    recorder: ValRecorder,
    index: int,
    classes_HW: np.ndarray,
    counts_CC: np.ndarray,
) -> None:
    class_maps[index] = classes_HW
    recorder.add(index, classes_HW, counts_CC)
    # Once for all models: photograph and truth stand in the teacher's record only.
    recorder.add_picture(index, "image", np.asarray(data.val.images[index]))
    recorder.add_picture(index, "truth", np.asarray(data.val.labels[index]))


def _pictures(data: Data, shown: list[int], class_maps: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    pictures = {}
    for index in shown:
        pictures[f"{index:05d}_image"] = np.asarray(data.val.images[index])
        pictures[f"{index:05d}_truth"] = np.asarray(data.val.labels[index])
        pictures[f"{index:05d}_teacher"] = class_maps[index]
    return pictures
