"""A project with a cache of each kind."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from segdistill.data.prepared import PreparedData
from segdistill.data.teacher_cache import TeacherCache
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import COMPUTE, logits_params, spec_of, write_prepared, write_teacher


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a teacher, prepared data, and a cache of each kind in data/teacher_logits; read only."""
    folder = tmp_path_factory.mktemp("project")
    write_prepared(folder / "data" / "prepared")
    write_teacher(folder / "models" / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data = PreparedData.open()
        for kind in ("views", "frame", "online"):
            out = folder / "data" / "teacher_logits" / kind
            build_cache(kind, out, data.train, spec_of(data), logits_params(), COMPUTE)
    return folder


@pytest.fixture
def opened(project, monkeypatch):
    """In the project: its data, train split and spec of views, and `open(kind)`."""
    monkeypatch.chdir(project)
    data = PreparedData.open()
    spec = spec_of(data)
    return SimpleNamespace(data=data, split=data.train, spec=spec, open=lambda kind: TeacherCache(kind, spec))


@pytest.fixture
def copied(project, tmp_path):
    """A cache of views that may be spoilt."""
    return shutil.copytree(project / "data" / "teacher_logits" / "views", tmp_path / "views")
