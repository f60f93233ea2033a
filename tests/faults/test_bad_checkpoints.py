"""Weights and ONNX files that do not fit or are broken: each stage names the file, and writes nothing.

The unit tests of `nets/weights` and `export/onnx_file` cover each kind of broken file; here is what the stage prints.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from onnx import TensorProto, helper, save
from safetensors.torch import load_file, save_file

from segdistill.formats.header import Header
from segdistill.nets.registry import build_uninitialized
from segdistill.nets.weights import save_net
from support.finished_project import Project
from support.tiny_city import ARCH

CLASSES = 19
State = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def state() -> State:
    """Weights that fit the teacher's network."""
    return build_uninitialized(ARCH, CLASSES).state_dict()


def of_classes(classes: int) -> State:
    return build_uninitialized(ARCH, classes).state_dict()


def reshaped(state: State) -> State:
    first = next(iter(state))
    return state | {first: torch.zeros(3)}


def without_two(state: State) -> State:
    return {key: state[key] for key in list(state)[2:]}


# The file, what is saved in it, what the message has to say: the file, what was found, what is allowed.
SAVED: dict[str, tuple[str, Callable[[State], object], list[str]]] = {
    "other classes": (
        "best.pth",
        lambda state: {"model_state": of_classes(21)},
        ["best.pth: the weights do not fit", "for 21 classes, the network was built for 19"],
    ),
    "missing keys": ("best.pth", without_two, ["best.pth: the weights do not fit the network", "2 missing: backbone."]),
    "further keys": (
        "best.pt",
        lambda state: state | {"aux.weight": torch.zeros(1)},
        ["best.pt: the weights do not fit the network", "1 unexpected: aux.weight"],
    ),
    "other shapes": ("best.pth", reshaped, ["best.pth: the weights do not fit", "1 wrongly shaped", "[3] instead of"]),
    "another network": (
        "best.pth",
        lambda state: build_uninitialized("deeplabv3plus_mobilenet", CLASSES).state_dict(),
        ["best.pth: the weights do not fit the network", "unexpected"],
    ),
    "not finite": (
        "best.pth",
        lambda state: state | {key: torch.full_like(value, torch.nan) for key, value in list(state.items())[:1]},
        ["best.pth: the weights are no finite real numbers", "spoilt: "],
    ),
    "no tensors": ("best.pth", lambda state: {"epoch": 3}, ["best.pth: not a state dict: 'epoch' holds a int"]),
    "a whole module": ("best.pth", lambda state: torch.nn.Conv2d(1, 1, 1), ["best.pth: not a checkpoint that can be"]),
}


@pytest.mark.parametrize("name", SAVED)
def test_teacher_that_does_not_fit_is_refused(project, refused, state, name):
    file, content, expected = SAVED[name]
    torch.save(content(state), project.path(file))
    project.set_params(teacher__checkpoint=file)
    refused("teacher_check", expected)


BYTES = {
    "empty": ("best.pth", b"", ["best.pth: not a checkpoint that can be read safely", "saved with torch.save"]),
    "text": ("best.pth", b"no weights\n", ["best.pth: not a checkpoint that can be read safely"]),
    "empty safetensors": ("best.safetensors", b"", ["best.safetensors: no safetensors file"]),
    "text as safetensors": ("best.safetensors", b"no weights\n" * 9, ["best.safetensors: no safetensors file"]),
    "text, suffix in capitals": ("BEST.SAFETENSORS", b"no weights\n" * 9, ["BEST.SAFETENSORS: no safetensors file"]),
}


@pytest.mark.parametrize("name", BYTES)
def test_teacher_that_is_no_weights_file_is_refused(project, refused, name):
    file, content, expected = BYTES[name]
    project.write(file, content)
    project.set_params(teacher__checkpoint=file)
    refused("teacher_check", expected)


@pytest.mark.parametrize("file", ["best.pth", "best.safetensors"])
def test_teacher_that_was_cut_short_is_refused(project, refused, state, file):
    if file.endswith(".pth"):
        torch.save(state, project.path(file))
    else:
        save_file(state, project.path(file))
    project.cut_short(file, 0.9)
    project.set_params(teacher__checkpoint=file)
    refused("teacher_check", [f"{file}: no"])


def test_teacher_that_is_not_there_is_refused(project, refused):
    project.set_params(teacher__checkpoint="gone.pth")
    refused("teacher_check", ["teacher.checkpoint: found 'gone.pth'; no such file"])


def test_initial_weights_of_which_none_fits_are_refused(project, refused):
    save_file({"embeddings.weight": torch.zeros(3)}, project.path("start.safetensors"))
    project.set_params(runs__taught__init="start.safetensors")
    refused("distill --run taught", ["start.safetensors: no weight fits the network deeplabv3plus_mobilenet"])


def replaced_by_5_classes(project: Project, name: str) -> None:
    project.path(name).unlink()
    save_net(project.path(name), build_uninitialized(ARCH, 5), Header.of_net(ARCH, 5, 16))


def with_foreign_weights(project: Project, name: str) -> None:
    """The header as it was, a weight too many."""
    length = int.from_bytes(project.path(name).read_bytes()[:8], "little")
    metadata = json.loads(project.path(name).read_bytes()[8 : 8 + length])["__metadata__"]
    state = load_file(project.path(name)) | {"aux.weight": torch.zeros(1)}
    project.path(name).unlink()
    save_file(state, project.path(name), metadata=metadata)


DISTILLED, FINETUNED = (f"models/runs/vanilla/{name}.safetensors" for name in ("distilled", "finetuned"))
TEACHER = "models/teacher/teacher.safetensors"
# What a stage finds in place of what the stage before it wrote.
BETWEEN_STAGES = {
    "a student cut short": (
        "steplr_finetune --run vanilla",
        lambda project: project.cut_short(DISTILLED),
        [f"{DISTILLED}: no safetensors file"],
    ),
    "no student": (
        "steplr_finetune --run vanilla",
        lambda project: project.path(DISTILLED).unlink(),
        [f"{DISTILLED}: no such file"],
    ),
    "a student of other classes": (
        "steplr_finetune --run vanilla",
        lambda project: replaced_by_5_classes(project, DISTILLED),
        [f"{DISTILLED}: classes is 5 there, 19 is needed"],
    ),
    "a student of another network": (
        "steplr_finetune --run vanilla",
        lambda project: project.set_params(runs__vanilla__student="deeplabv3plus_mobilenet"),
        [f"{DISTILLED}: arch is '{ARCH}' there, 'deeplabv3plus_mobilenet' is needed"],
    ),
    "a student of other weights": (
        "export_onnx --run vanilla",
        lambda project: with_foreign_weights(project, FINETUNED),
        [f"{FINETUNED}: the weights do not fit the network", "unexpected: aux.weight"],
    ),
    "a student of other classes, to be exported": (
        "export_onnx --run vanilla",
        lambda project: replaced_by_5_classes(project, FINETUNED),
        [f"{FINETUNED}: classes is 5 there, 19 is needed"],
    ),
    "a safetensors file of somebody else": (
        "export_onnx --run vanilla",
        lambda project: project.write(FINETUNED, b"\x02\0\0\0\0\0\0\0{}"),
        [f"{FINETUNED}: its header does not say which network it holds"],
    ),
    "no class maps of the teacher": (
        "export_onnx --run vanilla",
        lambda project: project.cut_short("models/teacher/val_classes.npz"),
        ["models/teacher/val_classes.npz: no readable archive of class maps"],
    ),
    "a teacher cut short": (
        "teacher_logits --kind views",
        lambda project: project.cut_short(TEACHER),
        [f"{TEACHER}: no safetensors file"],
    ),
    "a teacher of other classes": (
        "teacher_logits --kind views",
        lambda project: replaced_by_5_classes(project, TEACHER),
        ["models/teacher: gives 5 classes, 19 are needed"],
    ),
    "no teacher": (
        "teacher_logits --kind views",
        lambda project: project.path(TEACHER).unlink(),
        [f"{TEACHER}: no such file"],
    ),
    "no finished student": (
        "benchmark",
        lambda project: project.path("models/runs/taught/finetuned.safetensors").unlink(),
        ["models/runs/taught/finetuned.safetensors: no such file"],
    ),
}


@pytest.mark.parametrize("name", BETWEEN_STAGES)
def test_outputs_of_a_stage_that_do_not_fit_are_refused_by_the_next(project, refused, name):
    call, change, expected = BETWEEN_STAGES[name]
    change(project)
    refused(call, expected)


def of_other_names(project: Project, name: str) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "foreign", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), project.path(name))


ONNX = "models/runs/taught/student.onnx"
ONNX_FILES = {
    "truncated": (
        lambda project: (of_other_names(project, ONNX), project.cut_short(ONNX)),
        [f"{ONNX}: no readable ONNX model"],
    ),
    "empty": (lambda project: project.write(ONNX, b""), [f"{ONNX}: "]),
    "text": (lambda project: project.write(ONNX, b"no model\n" * 99), [f"{ONNX}: no readable ONNX model"]),
    "missing": (lambda project: None, [f"{ONNX}: no such file"]),
    "other names": (
        lambda project: of_other_names(project, ONNX),
        [f"{ONNX}: has inputs ['x'] and outputs ['y']; a student has ['image'] and ['classes', 'logits']"],
    ),
}


@pytest.mark.parametrize("name", ONNX_FILES)
def test_onnx_files_that_are_no_students_are_refused(project, refused, name):
    change, expected = ONNX_FILES[name]
    change(project)
    refused("benchmark", expected)
