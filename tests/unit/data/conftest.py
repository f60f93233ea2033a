"""A project with a cache of each kind."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from segdistill.data.prepared import open_split
from segdistill.data.teacher_cache import Teaching
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import COMPUTE, facts_of, logits_params, write_prepared, write_teacher


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a teacher, prepared data, and a cache of each kind in data/teacher_logits; read only."""
    folder = tmp_path_factory.mktemp("project")
    write_prepared(folder / "data" / "prepared")
    write_teacher(folder / "models" / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        split = open_split("train")
        for kind in ("views", "frame", "online"):
            out = folder / "data" / "teacher_logits" / kind
            build_cache(kind, out, split, facts_of(split), logits_params(), COMPUTE)
    return folder


@pytest.fixture
def opened(project, monkeypatch):
    """In the project: its train split, and `open(kind)`."""
    monkeypatch.chdir(project)
    split = open_split("train")
    return SimpleNamespace(split=split, facts=facts_of(split), open=lambda kind: Teaching(kind, facts_of(split)))


@pytest.fixture
def copied(project, tmp_path):
    """A cache of views that may be spoilt."""
    return shutil.copytree(project / "data" / "teacher_logits" / "views", tmp_path / "views")
