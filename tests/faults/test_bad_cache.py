"""A stage refuses teacher logits of another teacher, other data or other views, and damaged ones, by name.

tests/unit/data/test_cache_refused.py has what the reader makes of every single key.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from segdistill.core.provenance import file_sha256
from segdistill.nets.registry import build
from segdistill.scoring.record import write_archive
from support.city_on_disk import write_city
from support.finished_project import Project
from support.tiny_city import ARCH

CACHE = "data/teacher_logits/views"
TEACHER = "models/teacher/teacher.safetensors"


def with_manifest(**changed: object):
    def change(project: Project) -> None:
        manifest = json.loads(project.path(f"{CACHE}/manifest.json").read_bytes())
        project.write(f"{CACHE}/manifest.json", json.dumps(manifest | changed).encode())

    return change


def with_class_maps_of(frame: int):
    def change(project: Project) -> None:
        project.path(f"{CACHE}/val_classes.npz").unlink()
        write_archive(project.path(f"{CACHE}/val_classes.npz"), {frame: np.zeros((32, 64), np.uint8)})

    return change


def with_another_teacher(project: Project) -> None:
    """Check another teacher without computing its logits."""
    torch.save(build(ARCH, 19).state_dict(), project.path("other.pth"))
    project.set_params(teacher__checkpoint="other.pth")
    assert project.call("teacher_check").exit_code == 0


def with_other_data(project: Project) -> None:
    """Prepare other data, as many frames of the same size."""
    stems = [f"{city}_000000_000019" for city in ("aachen", "bochum", "jena")]
    write_city(project.path("raw"), tuple(stems), ("ulm_000000_000019",), (32, 64))
    project.set_params(data__source="cityscapes", data__root="raw")
    assert project.call("prepare").exit_code == 0


BROKEN = {
    "other data": (with_other_data, [f"{CACHE}: data_fingerprint is '", "is needed"]),
    "another preprocessing": (
        with_manifest(normalisation={"mean": [0.5] * 3, "std": [0.5] * 3}),
        [f"{CACHE}: normalisation is {{'mean': [0.5, 0.5, 0.5]", "0.485", "is needed"],
    ),
    "other views": (
        lambda project: project.set_params(teacher_logits__views=3),
        [f"{CACHE}: views is 2 there, 3 is needed"],
    ),
    "another stride": (
        lambda project: project.set_params(teacher_logits__stride=8),
        [f"{CACHE}: stride is 4 there, 8 is needed"],
    ),
    "another seed": (lambda project: project.set_params(seed=7), [f"{CACHE}: seed is 0 there, 7 is needed"]),
    "truncated logits": (
        lambda project: project.cut_short(f"{CACHE}/logits-00000.npy"),
        [f"{CACHE}/logits-00000.npy: unreadable", "file size", "dvc repro teacher-logits"],
    ),
    "truncated manifest": (
        lambda project: project.cut_short(f"{CACHE}/manifest.json"),
        [f"{CACHE}: no readable manifest", "dvc repro teacher-logits"],
    ),
    "truncated class maps": (
        lambda project: project.cut_short(f"{CACHE}/val_classes.npz"),
        [f"{CACHE}/val_classes.npz: no readable archive of class maps"],
    ),
    "class maps of other frames": (with_class_maps_of(7), ["val_classes.npz: has no class map of frame 0"]),
    "nothing": (
        lambda project: shutil.rmtree(project.path(CACHE)),
        [f"{CACHE}: no readable manifest", "dvc repro teacher-logits"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_distill_refuses_another_or_damaged_cache(project, refused, name):
    change, message = BROKEN[name]
    change(project)
    refused("distill --run taught", message)


def test_finetune_refuses_a_damaged_cache(project, refused):
    project.cut_short(f"{CACHE}/logits-00000.npy")
    refused("steplr_finetune --run taught", [f"{CACHE}/logits-00000.npy: unreadable"])


def test_cache_of_another_teacher_is_refused(project, refused):
    made_from = file_sha256(project.path(TEACHER))
    with_another_teacher(project)
    there = file_sha256(project.path(TEACHER))
    assert there != made_from
    message = [
        f"{CACHE}: teacher_sha256 is '{made_from}' there",
        f"models/teacher has '{there}'",
        "dvc repro teacher-logits",
    ]
    refused("distill --run taught", message)


def test_distill_needs_no_teacher_but_its_cache(project):
    """As on a machine that pulled only the dependencies of the stage."""
    shutil.rmtree(project.path("models/teacher"))
    done = project.call("distill", "--run", "taught")
    assert done.exit_code == 0, done.err
