"""A cache that is written while the teacher computes has the bytes of one that is written in between."""

from __future__ import annotations

import pytest

from segdistill.core.errors import UserError
from segdistill.teacher_logits import shards
from segdistill.teacher_logits.build import build_cache
from segdistill.teacher_logits.overlap import Overlap
from support.cached_teacher import COMPUTE, logits_params, write_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def overlapping(monkeypatch):
    """A CPU overlaps reading, computing and writing as a GPU does."""
    monkeypatch.setattr(shards, "Overlap", lambda active: Overlap(active=True))


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("kind", ["views", "frame"])
def test_overlapping_changes_no_byte(opened, tmp_path, monkeypatch, kind, dtype):
    params = logits_params(dtype).model_copy(update={"batch_size": 1})
    for name in ("in_turn", "overlapped"):
        if name == "overlapped":
            monkeypatch.setattr(shards, "Overlap", lambda active: Overlap(active=True))
        build_cache(kind, tmp_path / name, opened.split, opened.spec, params, COMPUTE)
    files = {name: sorted((tmp_path / name).rglob("*.*")) for name in ("in_turn", "overlapped")}
    assert [file.name for file in files["in_turn"]] == [file.name for file in files["overlapped"]]
    for one, other in zip(*files.values(), strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_logit_that_is_not_finite_leaves_no_cache(opened, tmp_path, monkeypatch, overlapping):
    write_teacher(tmp_path / "models" / "teacher", spoil=float("nan"))
    monkeypatch.chdir(tmp_path)
    params = logits_params().model_copy(update={"batch_size": 1})
    with pytest.raises(UserError, match="logit of frame street0 is not finite as float16; no cache written"):
        build_cache("views", tmp_path / "out" / "views", opened.split, opened.spec, params, COMPUTE)
    assert not (tmp_path / "out").exists()
