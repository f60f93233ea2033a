"""`segdistill work RUN` in a clone, by real DVC processes, on a pipeline whose stages sleep and write a line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks.sweeping import FAILING, environment, sleeping_project

RUNS = ["vanilla", "one"]
STAGES = ["distill@one", "steplr-finetune@one", "export-onnx@one"]


def call(folder: Path, *command: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *command] if command[0] != "git" else list(command)
    return subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)


def done(folder: Path, *command: str) -> str:
    called = call(folder, *command)
    assert called.returncode == 0, called.stdout + called.stderr
    return called.stdout


def clone_of(home: Path, folder: Path) -> Path:
    """Return a clone with params and lock of home, and its own connection to the remote."""
    done(home, "git", "clone", "-q", str(home), str(folder))
    for name in ("params.yaml", "dvc.lock"):
        shutil.copy(home / name, folder / name)
    done(folder, "dvc", "remote", "add", "--local", "-d", "store", str(home.with_name("store")))
    return folder


@pytest.fixture
def home(tmp_path):
    """A project with a remote, whose shared stages have run and were pushed."""
    project = sleeping_project(tmp_path / "home", RUNS, seconds=0)
    (project / "store").mkdir()
    done(project, "git", "add", "-A")
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    done(project, "git", *identity, "commit", "-q", "-m", "start")
    done(project, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    done(project, "dvc", "repro", "teacher-logits")
    done(project, "dvc", "push")
    return project


@pytest.mark.slow
def test_work_runs_one_run_in_a_clone_and_home_restores_it(home, tmp_path):
    clone = clone_of(home, tmp_path / "clone")
    entries = json.loads(done(clone, "segdistill", "work", "one"))
    assert list(entries) == STAGES
    assert entries == {name: yaml.safe_load((clone / "dvc.lock").read_text())["stages"][name] for name in STAGES}
    assert not (clone / "models/runs/vanilla").exists()

    restored = done(home, "dvc", "repro", "--pull", "--single-item", *STAGES)
    assert "Running stage" not in restored
    assert (home / "models/runs/one/student.onnx").read_bytes() == (clone / "models/runs/one/student.onnx").read_bytes()
    lock = yaml.safe_load((home / "dvc.lock").read_text())["stages"]
    assert {name: lock[name] for name in STAGES} == entries

    # A second machine finds it in the run cache.
    again = call(clone_of(home, tmp_path / "again"), "segdistill", "work", "one")
    assert "Running stage" not in again.stderr
    assert json.loads(again.stdout) == entries


@pytest.mark.slow
def test_work_is_refused_before_it_starts(home, tmp_path):
    clone = clone_of(home, tmp_path / "clone")
    refused = call(clone, "segdistill", "work", "two")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "runs: no run is named 'two'; params.yaml has vanilla, one" in refused.stderr

    done(clone, "dvc", "remote", "remove", "--local", "store")
    refused = call(clone, "segdistill", "work", "one")
    assert refused.returncode == 1
    assert "no default DVC remote" in refused.stderr

    done(clone, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"))
    (clone / "dvc.lock").unlink()
    refused = call(clone, "segdistill", "work", "one")
    assert refused.returncode == 1
    assert "dvc.lock: no entry of prepare, teacher-check, teacher-logits@views; run the shared stages" in refused.stderr


@pytest.mark.slow
def test_failed_stage_is_not_pushed(home, tmp_path):
    clone = clone_of(home, tmp_path / "clone")
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["runs"]["one"]["lr"] = FAILING
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    failed = call(clone, "segdistill", "work", "one")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "error: one: a stage failed; its message is above" in failed.stderr
    assert not list((tmp_path / "store").rglob("runs"))
