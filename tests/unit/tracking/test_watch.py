"""A sweep that is followed: points and images of running trainings come in as they are written, each once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from segdistill.formats.curve import append_point, write_curve
from segdistill.params.read import load_params
from segdistill.results.row import SETTINGS
from segdistill.tracking.mlflow import track
from segdistill.tracking.watch import Watcher, running_trainings
from segdistill.training.checkpoint import FOLD_TRAININGS
from support.sweep_on_disk import (
    IMAGE_KEY,
    METRICS,
    RUNS,
    logged_images,
    runs_in,
    write,
    write_params,
    write_step_images,
)

SCRATCH = Path("scratch")
RUN = "a03-lr01"


def point(step: int) -> dict:
    values = {"lr": 0.01, "loss": 3 / (step + 1), "label_loss": 1.5, "distill_loss": 0.1, "holdout_mean_iou": None}
    return {"step": step} | values


class FakeTraining:
    """What a training does to its scratch folder."""

    def __init__(self, job: str) -> None:
        self.folder = SCRATCH / job / "0123"
        self.folder.mkdir(parents=True)
        self.lock = filelock.FileLock(self.folder.parent / "lock")
        self.lock.acquire()
        write_step_images(self.folder / "images", 0)
        write_curve(self.folder / "curve.csv", [])

    def step(self, step: int) -> None:
        append_point(self.folder / "curve.csv", point(step))


@pytest.fixture
def project(home):
    """A sweep of which the teacher and the control are done, and the other run is about to be trained."""
    for path in sorted(Path("metrics/runs", RUN).rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    write(Path("data/prepared/index.json"), {"fingerprint": METRICS["data_fingerprint"]})
    # Older than what trains now, as in a project.
    os.utime("params.yaml", (time.time() - 60,) * 2)
    return home


def steps_in(name: str) -> list[int]:
    (run,) = runs_in()[name]
    return [step for step, _ in run.histories["curve/loss"]]


def test_points_and_images_of_a_running_training_come_in_once(project):
    watcher, training = Watcher(), FakeTraining(f"distill/{RUN}")
    training.step(2)
    watcher.update()
    assert steps_in(RUN) == [2]
    (run,) = runs_in()[RUN]
    assert (run.info.status, run.data.tags["segdistill.current"]) == ("RUNNING", "true")
    training.step(4)
    write_step_images(training.folder / "images", 0, 4)
    watcher.update()
    watcher.update()
    Watcher().update()  # of another process
    assert steps_in(RUN) == [2, 4]
    assert logged_images(run) == [(IMAGE_KEY, 0), (IMAGE_KEY, 4)]
    assert runs_in().keys() == {"teacher", *RUNS}
    training.lock.release()


def test_a_training_that_is_stopped_and_continued_stays_one_row(project):
    watcher, training = Watcher(), FakeTraining(f"distill/{RUN}")
    training.step(2)
    training.step(4)
    watcher.update()
    training.lock.release()
    watcher.update()
    assert runs_in()[RUN][0].info.status == "SCHEDULED"
    training.lock.acquire()
    write_curve(training.folder / "curve.csv", [point(2)])  # its last checkpoint was before step 4
    watcher.update()
    training.step(4)
    training.step(6)
    watcher.update()
    assert steps_in(RUN) == [2, 4, 6]
    assert runs_in()[RUN][0].info.status == "RUNNING"
    training.lock.release()


def test_finetuning_continues_the_curve_and_its_end_is_the_row_that_track_brings_in(project):
    watcher, folder = Watcher(), Path("metrics/runs", RUN)
    write(folder / "distill.json", METRICS | {"mean_iou": 0.2})
    write_curve(folder / "distill_curve.csv", [point(step) for step in (2, 4, 6)])
    training = FakeTraining(f"finetune/{RUN}")
    training.step(2)
    watcher.update()
    assert steps_in(RUN) == [2, 4, 6, 8]
    training.step(4)
    training.lock.release()
    write_curve(folder / "finetune_curve.csv", [point(step) for step in (2, 4)])
    write(folder / "finetune.json", METRICS)
    watcher.update()
    assert track(load_params(), Path("metrics"))
    (run,) = runs_in()[RUN]
    assert steps_in(RUN) == [2, 4, 6, 8, 10]
    assert run.info.status == "FINISHED"
    assert all(len(points) == 1 for name, points in run.histories.items() if not name.startswith("curve/"))


def test_a_training_of_params_that_were_edited_since_is_left_out(project, caplog, capfd):
    training = FakeTraining(f"distill/{RUN}")
    training.step(2)
    write_params(RUNS | {RUN: RUNS[RUN] | {"alpha": 0.9}})
    os.utime("params.yaml", (time.time() + 60,) * 2)
    Watcher().update()
    assert RUN not in runs_in()
    assert f"distill/{RUN}: params.yaml was edited after this training began" in capfd.readouterr().err
    training.lock.release()


def test_metrics_of_other_settings_are_left_out(project):
    written = dict.fromkeys(SETTINGS) | {"row_key": "of other settings"}
    write(Path("metrics/summary.json"), {"runs": {"vanilla": written}})
    Watcher().update()
    assert runs_in().keys() == {"teacher"}


def test_a_failure_is_one_warning_and_the_next_round_brings_it_in(project, capfd):
    raw = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text("seed: [", encoding="utf-8")
    watcher = Watcher()
    watcher.update()
    watcher.update()
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith("warning: params.yaml: not YAML")
    Path("params.yaml").write_text(raw, encoding="utf-8")
    watcher.update()
    assert runs_in().keys() == {"teacher", "vanilla"}


def test_a_training_is_running_while_it_holds_its_lock(project):
    trainings = [FakeTraining("teacher"), FakeTraining(f"distill/{RUN}")]
    assert [(one.name, one.phase) for one in running_trainings(SCRATCH)] == [(RUN, "distill"), ("teacher", "teacher")]
    trainings[1].lock.release()
    assert [one.name for one in running_trainings(SCRATCH)] == ["teacher"]
    trainings[0].lock.release()
    assert running_trainings(SCRATCH) == []


def test_trainings_of_folds_have_no_row(project):
    training = FakeTraining(f"{FOLD_TRAININGS}/0")
    assert running_trainings(SCRATCH) == []
    training.lock.release()


@pytest.mark.slow
def test_mlflow_records_the_machine_while_a_training_runs(project, monkeypatch):
    monkeypatch.setattr("segdistill.tracking.watch.SYSTEM_METRICS_EVERY_S", 0.2)
    write_params(RUNS, system_metrics=True)
    os.utime("params.yaml", (time.time() - 60,) * 2)
    watcher, training = Watcher(), FakeTraining(f"distill/{RUN}")
    training.step(2)
    watcher.update()
    until = time.monotonic() + 30
    while "system/cpu_utilization_percentage" not in runs_in()[RUN][0].data.metrics and time.monotonic() < until:
        time.sleep(0.5)
    training.lock.release()
    watcher.update()
    watcher.stop()
    metrics = runs_in()[RUN][0].data.metrics
    assert metrics["system/system_memory_usage_percentage"] > 0
    assert not any(name.startswith("system/") for name in runs_in()["vanilla"][0].data.metrics)


@pytest.mark.slow
def test_the_command_follows_until_it_is_interrupted(project):
    command = [sys.executable, "-m", "segdistill", "track", "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while "vanilla" not in runs_in() and time.monotonic() < until:
            time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.startswith("following the sweep in MLflow at sqlite:///")
    assert runs_in().keys() == {"teacher", "vanilla"}
