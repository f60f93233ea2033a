"""`segdistill work RUN` in a clone, by real DVC processes, on a pipeline whose stages sleep and write a line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from benchmarks.sweeping import FAILING, commit_and_connect, environment, sleeping_project
from segdistill.sweep import cluster
from segdistill.sweep.worker import changed_inputs, run_in_clone

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


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A folder with a project, home, whose shared stages have run and were pushed to a remote, store."""
    folder = tmp_path_factory.mktemp("pushed")
    project = sleeping_project(folder / "home", RUNS, seconds=0)
    commit_and_connect(project, folder / "store")
    done(project, "dvc", "repro", "teacher-logits")
    done(project, "dvc", "push")
    return folder


@pytest.fixture
def home(pushed, tmp_path):
    """A copy of the project, with a copy of its remote."""
    for name in ("home", "store"):
        shutil.copytree(pushed / name, tmp_path / name)
    config = tmp_path / "home/.dvc/config.local"
    config.write_text(config.read_text().replace(str(pushed), str(tmp_path)))
    return tmp_path / "home"


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
def test_a_worker_makes_its_own_clone_and_shares_one_cache(home, tmp_path, monkeypatch):
    """Do what a task on a Ray cluster does, without Ray."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    result = run_in_clone(cluster._job(threads=3), cluster._bundle(), "one")
    assert result.entries is not None, result.log
    assert list(result.entries) == STAGES
    assert "Running stage 'distill@one'" in result.log
    assert list((tmp_path / "cache/segdistill").glob("*/files"))
    assert not list(tmp_path.glob("segdistill-*")), "the clone is left"
    (home / "scratch/sweep").mkdir(parents=True)
    assert cluster._bring_home("one", result.entries, signals=[])
    assert (home / "models/runs/one/student.onnx").exists()
    assert "Running stage" not in done(home, "dvc", "repro", "--single-item", *STAGES)


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


def set_params(home: Path, section: str, **changed: object) -> None:
    params = yaml.safe_load((home / "params.yaml").read_text())
    params[section] |= changed
    (home / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def ran(clone: Path, student: str) -> list[str]:
    """Do the work of a student and return the stages that ran."""
    worked = call(clone, "segdistill", "work", student)
    assert worked.returncode == 0, worked.stderr
    return re.findall(r"Running stage '(.+)'", worked.stderr)


@pytest.mark.slow
def test_work_runs_again_what_other_stages_wrote_anew(home, tmp_path):
    """A clone has neither logits nor weights, and DVC takes files that are not there for unchanged ones."""
    pipeline = yaml.safe_load((home / "dvc.yaml").read_text())
    for stage, content in (("teacher-logits", "echo ${teacher.steps}"), ("distill", "cat data/teacher_logits/views")):
        body = pipeline["stages"][stage]["do"]
        assert "echo '{}'" in body["cmd"]
        body["cmd"] = body["cmd"].replace("echo '{}'", content)
    (home / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    params = yaml.safe_load((home / "params.yaml").read_text())
    (home / "params.yaml").write_text(yaml.safe_dump(params | {"seeds": [1]}, sort_keys=False))
    done(home, "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qam", "other logits")
    done(home, "dvc", "repro")
    done(home, "dvc", "push")

    # Another opset: nothing trains, and the logits stay where they are.
    set_params(home, "export", opset=19)
    clone = clone_of(home, tmp_path / "exported")
    assert ran(clone, "one-1") == ["export-onnx-repeat@one-1"]
    assert not (clone / "data").exists()

    # Other logits: the run trains again and so does its repetition, each in a clone of its own.
    set_params(home, "teacher", steps=7)
    done(home, "dvc", "repro", "teacher-logits")
    done(home, "dvc", "push")
    clone = clone_of(home, tmp_path / "trained")
    assert ran(clone, "one")[0] == "distill@one"
    shutil.copy(clone / "dvc.lock", home / "dvc.lock")
    assert ran(clone_of(home, tmp_path / "repeated"), "one-1")[0] == "distill-repeat@one-1"


def test_changed_inputs_are_those_that_their_stages_wrote_anew():
    def entry(deps: dict, outs: dict) -> dict:
        named = {"deps": deps, "outs": outs}
        return {key: [{"path": path, "md5": md5} for path, md5 in files.items()] for key, files in named.items()}

    lock = {
        "prepare": entry({}, {"data": "1"}),
        "teacher": entry({"data": "1"}, {"models/teacher": "2.dir", "logits": "3"}),
        "distill": entry({"data": "1", "logits": "0", "src": "5"}, {"weights": "4"}),
        "export": entry({"weights": "4", "models/teacher/val.npz": "6", "logits": "0"}, {}),
    }
    assert changed_inputs(["distill", "export", "new"], lock) == ["logits", "models/teacher/val.npz"]
