"""The teacher as it lies in `models/teacher`: written once, opened wherever its predictions are wanted.

teacher.safetensors    a teacher that is one torch network, asked once for each image
teacher.json, 0.*, ... any other: how it is asked, and its members in order, as safetensors or ONNX
val_classes.npz        its class maps of val
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from segdistill.base.errors import InputError
from segdistill.base.files import read_json, write_json
from segdistill.base.params import TeacherParams, is_onnx
from segdistill.logits.teacher_cache import COMPOSITE, WEIGHTS, is_composite
from segdistill.nets.checkpoint import load_net, save_net
from segdistill.nets.compute import Compute
from segdistill.provenance import file_sha256
from segdistill.scoring.evaluate import TorchPredictor
from segdistill.teachers.composite_teacher import CompositeTeacher


class TorchMember(NamedTuple):
    """A torch network of a teacher, with the facts that its file is to hold."""

    net: nn.Module
    facts: dict


class Teacher(NamedTuple):
    """An opened teacher: a Predictor that gives `logits` as well, and facts about it."""

    predict: CompositeTeacher | TorchPredictor
    classes: int
    parameters: int | None  # None where an ONNX file is part of it
    described: str
    of_onnx_only: bool = False


def write_members(folder: Path, members: Sequence[TorchMember | Path], classes: int, teacher: TeacherParams) -> None:
    """Write the teacher made of `members`, torch networks and paths of ONNX files, into an empty folder."""
    if teacher.is_one_net:
        save_net(folder / WEIGHTS, *members[0])
        return
    rows = []
    for number, member in enumerate(members):
        file = folder / f"{number}{'.onnx' if isinstance(member, Path) else '.safetensors'}"
        if isinstance(member, Path):
            from segdistill.teachers.onnx_teacher import (
                write_in_one_file,  # here, as onnxruntime is for those who need it
            )

            write_in_one_file(member, file)
        else:
            save_net(file, *member)
        rows.append({"file": file.name, "sha256": file_sha256(file)})
    asked = teacher.model_dump(mode="json", include={"flip", "scales", "onnx_mean", "onnx_std"})
    write_json(folder / COMPOSITE, {"described": teacher.described, "classes": classes, "members": rows} | asked)


def open_teacher(folder: Path, compute: Compute) -> Teacher:
    """The teacher in `folder`; ONNX files run on the CPU, with the threads of `compute`.

    Raises:
        InputError: a file is missing, or is not the one that was written.
    """
    if not is_composite(folder):
        net, facts = load_net(folder / WEIGHTS)
        return Teacher(TorchPredictor(net, compute), facts["classes"], _parameters(net), facts["arch"])
    facts = read_json(folder / COMPOSITE)
    members, parameters = [], 0
    for row in facts["members"]:
        file = folder / row["file"]
        if not file.is_file() or file_sha256(file) != row["sha256"]:
            raise InputError(f"{file}: not the file that {COMPOSITE} names; run: dvc repro teacher-check")
        if is_onnx(row["file"]):
            from segdistill.teachers.onnx_teacher import OnnxTeacher

            given = (facts["onnx_mean"], facts["onnx_std"])
            members.append(OnnxTeacher(file, facts["classes"], compute.threads, *given))
            parameters = None
        else:
            net, _ = load_net(file)
            members.append(TorchPredictor(net, compute))
            parameters = None if parameters is None else parameters + _parameters(net)
    predict = CompositeTeacher(members, facts["flip"], facts["scales"], compute.device)
    of_onnx_only = all(is_onnx(row["file"]) for row in facts["members"])
    return Teacher(predict, facts["classes"], parameters, facts["described"], of_onnx_only)


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
