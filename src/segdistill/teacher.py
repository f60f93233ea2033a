"""The teacher: given or trained, checked against val, kept with the class maps that agreement is measured by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from segdistill.checkpoint import net_facts, save_net
from segdistill.class_maps import write_archive, write_pictures
from segdistill.dataset import PREPARED
from segdistill.errors import InputError
from segdistill.evaluate import TorchPredictor, evaluate, spread
from segdistill.files import write_json
from segdistill.metrics_file import figures_on_disk
from segdistill.nets.adapters import load_state
from segdistill.nets.registry import build_to_load
from segdistill.params import Params
from segdistill.progress import write_curve
from segdistill.provenance import file_sha256, git_revision
from segdistill.teacher_cache import geometry
from segdistill.train_loop import CURVE_COLUMNS
from segdistill.training_job import Data, compute_of, initial_net, read_weights, train_net

# Places per frame that the teacher's own crops are drawn from; nothing is stored for them.
CROPS_PER_FRAME = 1024


def check_teacher(params: Params, models: Path = Path("models"), metrics: Path = Path("metrics")) -> None:
    """Load or train the teacher, score it on val, and write it with its metrics, curve, class maps and pictures.

    Raises:
        InputError: the checkpoint does not fit, or val mIoU is under `teacher.min_mean_iou`.
    """
    data, teacher = Data(PREPARED), params.teacher
    classes = len(data.class_names)
    curve, scratch = [], None
    if teacher.checkpoint is not None:
        net = build_to_load(teacher.arch, classes, teacher.output_stride)
        load_state(net, read_weights(teacher.checkpoint, "teacher.checkpoint"), source=teacher.checkpoint)
    else:
        net, curve, scratch = _trained(params, data)
    class_maps: dict[int, np.ndarray] = {}
    shown = spread(len(data.val), params.evaluation.pictures)
    figures, _ = evaluate(
        TorchPredictor(net, compute_of(params)),
        data.val,
        classes,
        params.evaluation.batch_size,
        loss_kind=teacher.label_loss,
        focal_gamma=teacher.focal_gamma,
        on_classes=class_maps.__setitem__,
    )
    _stop_if_weak(figures, data.class_names, teacher.min_mean_iou)
    facts = net_facts(teacher.arch, classes, teacher.output_stride) | {
        "params": teacher.model_dump(mode="json"),
        "seed": params.seed,
        "step": 0 if teacher.checkpoint else teacher.steps,
        "git_revision": git_revision(),
    }
    save_net(models / "teacher" / "teacher.safetensors", net, facts)
    write_archive(models / "teacher" / "val_classes.npz", class_maps)
    write_curve(metrics / "teacher_curve.csv", CURVE_COLUMNS, curve)
    write_pictures(metrics / "pictures", _pictures(data, shown, class_maps))
    weights = file_sha256(models / "teacher" / "teacher.safetensors")
    extra = {
        "arch": teacher.arch,
        "parameters": sum(p.numel() for p in net.parameters()),
        "weights_sha256": weights,
        "data_fingerprint": data.fingerprint,
    }
    write_json(metrics / "teacher.json", figures_on_disk(figures, data.class_names) | extra)
    if scratch:
        scratch.clear()


def _trained(params: Params, data: Data) -> tuple[nn.Module, list[dict], object]:
    teacher = params.teacher
    data.check_crop("teacher.crop_px", teacher.crop_px)
    net = initial_net(
        teacher.arch, len(data.class_names), teacher.output_stride, teacher.init, params.seed, "teacher.init"
    )
    facts = geometry(data.train, data.fingerprint, params.seed, teacher.crop_px, CROPS_PER_FRAME, stride=1)
    curve, scratch = train_net(
        "teacher", net, teacher, facts, lr=teacher.lr, seed=params.seed, start=teacher.init, params=params, data=data
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


def _pictures(data: Data, shown: list[int], class_maps: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    pictures = {}
    for index in shown:
        pictures[f"{index:05d}_image"] = np.asarray(data.val.images[index])
        pictures[f"{index:05d}_truth"] = np.asarray(data.val.labels[index])
        pictures[f"{index:05d}_teacher"] = class_maps[index]
    return pictures
