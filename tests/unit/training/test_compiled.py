"""Trainings whose steps torch compiles: equal to plain ones up to rounding, and the same bytes after a kill."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from segdistill.training.checkpoint import Checkpointer
from segdistill.training.job import compiled
from segdistill.training.loop import step_forward, train
from support.tiny_training import (
    FeaturesOfATeacher,
    KilledError,
    TinyNet,
    assert_same,
    at,
    distilled,
    killed,
    make_job,
    make_split,
    run,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++, which is not here"),
]
STEPS = {"steps": 6, "checkpoint_every_steps": 1}


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """As on a machine on which torch has compiled nothing yet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run_compiled(root: Path, hook=None, **given):
    job = make_job(hook=hook, **STEPS, **given)
    job = job._replace(forward=compiled(step_forward(job.net, job.distillation), job.name, "distill.compile"))
    with Checkpointer(job.name, "key", root) as checkpointer:
        return job.net, train(job, checkpointer)


@pytest.mark.usefixtures("empty_cache")
def test_compiled_training_equals_a_plain_one_up_to_rounding(tmp_path, capsys):
    (net, curve), (plain, plain_curve) = run_compiled(tmp_path / "a"), run(tmp_path / "b", **STEPS)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    for row, wanted in zip(curve, plain_curve, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert capsys.readouterr().err.count("distill/tiny: torch compiles the network") == 1


@pytest.mark.usefixtures("empty_cache")
def test_compiled_training_learns_features_like_a_plain_one(tmp_path):
    given = distilled(feature_weight=0.5) | {"features": FeaturesOfATeacher(TinyNet(seed=9), make_split())}
    (net, curve), (plain, plain_curve) = (
        run_compiled(tmp_path / "a", **given),
        run(tmp_path / "b", **STEPS, **given),
    )
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert curve[-1]["loss"] == pytest.approx(plain_curve[-1]["loss"], rel=1e-4)


@pytest.mark.usefixtures("empty_cache")
def test_killed_compiled_training_ends_with_the_same_bytes(tmp_path):
    """A resumed process may find what torch compiled before; this one compiles again."""
    straight = run_compiled(tmp_path / "straight")
    torch._dynamo.reset()
    with pytest.raises(KilledError):
        run_compiled(tmp_path / "killed", hook=at(3, killed))
    torch._dynamo.reset()
    assert_same(run_compiled(tmp_path / "killed"), straight)


TRAINS = """
import sys
sys.path.insert(0, sys.argv[1])
from segdistill.core.errors import exit_on_user_error
from segdistill.training.job import compiled
from support.tiny_training import make_job
job = make_job()
with exit_on_user_error():
    compiled(job.net, job.name, "distill.compile")(__import__("torch").zeros(2, 3, 16, 16))
"""


def test_missing_compiler_is_reported_in_one_line(tmp_path):
    command = [sys.executable, "-c", TRAINS, str(Path(__file__).parents[2])]
    environment = {"PATH": str(tmp_path), "CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: distill.compile: found true; torch cannot compile here (")
    assert "C++ compiler" in last
    assert "Traceback" not in done.stderr
