"""Bad params.yaml: each stage says what was found and what is allowed, and touches nothing.

unit/params has every kind of error; here is what a user of a stage meets.
"""

from __future__ import annotations

import pytest
import torch

ONLINE = {"student": "deeplabv3_mobilenet_lite", "alpha": 0.5, "lr": 0.01, "teacher": "online"}
OFFLINE = ONLINE | {"alpha": 0.0, "teacher": "none"}
OF_ANY_SIZE = {"data__source": "cityscapes", "data__size_px": None}  # then only the prepared frames tell it
DEEP = b"[" * 400

# What is changed, the call, and what its message says: the params path, what was found, what is allowed.
CASES = {
    "unknown key": (
        {"distill__temprature": 2.0},
        "distill --run taught",
        ["distill.temprature: unknown key", "allowed: ", "temperature"],
    ),
    "wrong type": (
        {"teacher__steps": "many"},
        "teacher_check",
        ['teacher.steps: found "many"', "should be a valid integer"],
    ),
    "alpha over 1": (
        {"runs__taught__alpha": 1.2},
        "distill --run taught",
        ["runs.taught.alpha: found 1.2", "less than or equal to 1"],
    ),
    "alpha over 1, another run's": ({"runs__vanilla__alpha": 1.2}, "distill --run taught", ["runs.vanilla.alpha"]),
    "lr 0": (
        {"runs__taught__lr": 0},
        "steplr_finetune --run taught",
        ["runs.taught.lr: found 0", "should be greater than 0"],
    ),
    "lr negative": ({"teacher__lr": -0.1}, "teacher_check", ["teacher.lr: found -0.1", "should be greater than 0"]),
    "crop beyond the resized frame": (
        {"distill__crop_px": [32, 96]},
        "teacher_logits --kind views",
        ["distill.crop_px: found [32, 96]", "at most the frame, data.size_px [32, 64]"],
    ),
    "crop beyond the frames there are, logits": (
        OF_ANY_SIZE | {"distill__crop_px": [32, 96]},
        "teacher_logits --kind views",
        ["distill.crop_px: found [32, 96]", "at most the frames' size [32, 64]"],
    ),
    "crop beyond the frames there are, student": (
        OF_ANY_SIZE | {"distill__crop_px": [64, 64]},
        "distill --run vanilla",
        ["distill.crop_px: found [64, 64]", "at most the frames' size [32, 64]"],
    ),
    "crop beyond the frames there are, teacher": (
        OF_ANY_SIZE | {"teacher__crop_px": [33, 64]},
        "teacher_check",
        ["teacher.crop_px: found [33, 64]", "at most the frames' size [32, 64]"],
    ),
    "crop of which networks leave nothing": (
        {"teacher__crop_px": [1, 1]},
        "teacher_check",
        ["teacher.crop_px: found [1, 1]; at least 32 pixels a side"],
    ),
    "crop off the stride": (
        {"distill__crop_px": [32, 34]},
        "distill --run taught",
        ["distill.crop_px: found [32, 34]", "multiples of teacher_logits.stride 4, such as [32, 32]"],
    ),
    "ill-named run": (
        {"runs": {"vanilla": OFFLINE, "a0.3; rm": ONLINE | {"teacher": "views"}}},
        "report",
        ["runs.a0.3; rm: a run is named by up to 100 lower-case letters, digits and single dashes"],
    ),
    "kind that is not built": (
        {"runs__taught": ONLINE},
        "distill --run taught",
        ["runs.taught.teacher: found online", "teacher_logits.kinds builds ['views']"],
    ),
    "network that cannot have the stride": (
        {"runs__taught__output_stride": 8, "runs__taught__student": "lraspp_mobilenet_v3_large"},
        "benchmark",
        ["runs.taught.output_stride: found 8", "can be built at 16"],
    ),
    "no such run": ({}, "export_onnx --run tought", ["runs: no run is named 'tought'", "vanilla, taught"]),
    "no weights to start from": (
        {"runs__taught__init": "gone.pth"},
        "distill --run taught",
        ["runs.taught.init: found 'gone.pth'; no such file"],
    ),
    "the command, too": ({"seed": -1}, "show", ["seed: found -1", "greater than or equal to 0"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_value_is_refused(project, refused, name):
    changed, call, parts = CASES[name]
    project.set_params(**changed)
    refused(call, parts)


# The new content of the file, made of the old one, and what the message says.
FILES = {
    "run twice": (
        lambda text: text.replace(b"  taught:", b"  vanilla:"),
        ["params.yaml has lines that are not allowed (1)", "key vanilla occurs twice"],
    ),
    "empty": (lambda text: b"", ["params.yaml: found NoneType, allowed is a mapping of sections"]),
    "not UTF-8": (lambda text: text + b"\xff\xfe", ["params.yaml: not UTF-8"]),
    "not YAML": (lambda text: text + b"}", ["params.yaml: not YAML"]),
    "nested without end": (lambda text: text + b"x: " + DEEP, ["params.yaml: not YAML"]),
    "name that DVC drops": (lambda text: text.replace(b"  taught:", b"  12:"), ["key 12 is not text to YAML"]),
    "octal or not": (lambda text: text.replace(b"seed: 0", b"seed: 010"), ["line ", "010 is ambiguous in YAML"]),
    "alias": (
        lambda text: text.replace(b"seed: 0", b"seed: &zero 0").replace(b"alpha: 0.0", b"alpha: *zero"),
        ["params.yaml: alias *zero (line ", "allowed is the value itself"],
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_unreadable_file_is_refused(project, refused, name):
    changed, parts = FILES[name]
    before = project.path("params.yaml").read_bytes()
    project.write("params.yaml", changed(before))
    assert project.path("params.yaml").read_bytes() != before
    refused("distill --run taught", parts)


@pytest.mark.parametrize("call", ["prepare", "show", "track", "ui"])
def test_missing_file_gives_advice(project, refused, call):
    project.path("params.yaml").unlink()
    refused(call, ["params.yaml: no such file; take one with: cp profiles/tiny.yaml params.yaml"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_missing_device_is_refused(project, refused):
    project.set_params(compute__device="cuda")
    refused("distill --run taught", ["compute.device: found cuda", "allowed are auto and cpu"])
