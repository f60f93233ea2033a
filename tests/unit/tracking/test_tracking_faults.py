"""MLflow servers that fail at any moment and in any way: in the end everything is there once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from segdistill.params.model import Params
from segdistill.tracking.mlflow import track
from segdistill.tracking.rows import rows_on_disk
from support.fake_metrics import RUNS, sweep_params, write_metrics
from support.fake_mlflow_server import ANSWERS_500, DIES_AFTER, DIES_BEFORE, IS_SILENT, Content, described, serving
from support.sweep_on_disk import write_step_images

TRACK = [sys.executable, "-m", "segdistill", "track"]


def without_model() -> Params:
    """Return the params of the fake metrics, which have no models to register."""
    return sweep_params(tracking={"model": None})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the metrics of a sweep; calls that fail are repeated at once, and once."""
    monkeypatch.chdir(tmp_path)
    for name in ("BACKOFF_FACTOR", "BACKOFF_JITTER"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_metrics(tmp_path / "metrics")
    write_step_images(tmp_path / "metrics/runs/a03/distill_images", 0, 10)
    write_params(without_model())
    return tmp_path


def write_params(params: Params, folder: Path = Path()) -> None:
    (folder / "params.yaml").write_text(
        yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
    )


def tracked_without_a_fault(monkeypatch) -> dict[str, dict]:
    content = Content()
    with serving(content) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert track(without_model(), Path("metrics"))
    return described(content)


@pytest.mark.parametrize("fault", [DIES_BEFORE, DIES_AFTER, ANSWERS_500])
def test_a_server_that_dies_again_and_again_has_everything_once_in_the_end(home, fault, monkeypatch, capfd):
    expected, content, lives, done = tracked_without_a_fault(monkeypatch), Content(), 0, False
    assert set(expected) == {"teacher", *RUNS}
    images = [path for path in expected["a03"]["images"] if path.startswith("images/")]
    assert len(images) == 4, "two images by step, each of two sizes"
    while not done and lives < 30:
        lives += 1
        with serving(content, fault, good_requests=5 + 2 * lives) as address:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            done = track(without_model(), Path("metrics"))
    assert done
    assert lives >= 4
    warnings = capfd.readouterr().err.splitlines()
    assert len(warnings) == lives - 1
    assert all(warning.startswith("warning: MLflow at ") for warning in warnings)
    assert described(content) == expected


def test_a_run_that_is_created_twice_because_an_answer_was_lost_is_one_in_the_end(home, monkeypatch):
    expected, created_twice = tracked_without_a_fault(monkeypatch), 0
    for good_requests in range(2, 8):
        content = Content()
        for fault in (DIES_AFTER, ""):
            with serving(content, fault, good_requests) as address:
                monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
                assert track(without_model(), Path("metrics")) == (not fault)
        assert described(content) == expected
        created_twice += len(content.runs) > len(content.active())
    assert created_twice, "one of these requests creates a run, and MLflow repeats it"


@pytest.mark.slow
def test_the_command_brings_in_what_a_silent_server_missed(home, monkeypatch):
    expected, content = tracked_without_a_fault(monkeypatch), Content()
    with serving(content, IS_SILENT, good_requests=40) as address:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        failed = command(address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    assert failed.returncode == 1
    assert len(failed.stderr.splitlines()) == 1
    assert "segdistill track brings them in" in failed.stderr
    assert content.runs
    with serving(content) as address:
        done = command(address)
    assert (done.returncode, done.stderr) == (0, "")
    assert described(content) == expected


def command(address: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"MLFLOW_TRACKING_URI": address}
    return subprocess.run(TRACK, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_two_sweeps_at_once_lose_and_repeat_nothing_in_one_file(home, tmp_path_factory):
    """They share a teacher and a control, and each has a run of its own."""
    folders, store = (home, tmp_path_factory.mktemp("other")), home / "mlflow.db"
    sweeps = [without_model().model_copy(update={"runs": dict(runs)}) for runs in (RUNS_OF_ONE, RUNS_OF_OTHER)]
    write_metrics(folders[1] / "metrics")
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    both = []
    for folder, sweep in zip(folders, sweeps, strict=True):
        write_params(sweep, folder)
        both.append(subprocess.Popen(TRACK, cwd=folder, env=environment, stderr=subprocess.PIPE))
    assert [process.communicate(timeout=120)[1] for process in both] == [b"", b""]
    expected = {}
    for sweep in sweeps:
        for row in rows_on_disk(sweep, home / "metrics"):
            points = [(name, point.step) for point in row.points for name in point.values]
            expected[row.run] = Counter([(name, 0) for name in row.metrics] + points)
    assert expected.keys() >= {"teacher", *RUNS}
    assert points_in(store) == expected


RUNS_OF_ONE = [(name, run) for name, run in without_model().runs.items() if name != "light"]
RUNS_OF_OTHER = [(name, run) for name, run in without_model().runs.items() if name != "a03"]


def points_in(store: Path) -> dict[str, Counter]:
    """Return how often an MLflow database has each (metric, step) of each run."""
    with sqlite3.connect(store) as database:
        runs = database.execute("SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active'").fetchall()
        points = database.execute("SELECT run_uuid, key, step FROM metrics").fetchall()
    assert len({name for _, name in runs}) == len(runs), "a run is there twice"
    return {name: Counter((key, step) for of, key, step in points if of == run) for run, name in runs}
