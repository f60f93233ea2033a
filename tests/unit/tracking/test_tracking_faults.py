"""MLflow servers that fail, at any moment and in any way: no training notices, and in the end all is there once."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from segdistill.core.provenance import file_sha256
from segdistill.params.model import Params
from segdistill.paths import PREPARED
from segdistill.prepare.run import prepare
from segdistill.student.run import distill
from segdistill.tracking.mlflow import track
from segdistill.tracking.rows import read_curve, rows_on_disk
from segdistill.training import follower
from segdistill.training import loop as train_loop
from support.fake_metrics import RUNS, sweep_params, write_metrics
from support.fake_mlflow_server import ANSWERS_500, DIES_AFTER, DIES_BEFORE, IS_SILENT, Content, serving
from support.sweep_on_disk import write_step_pictures
from support.tiny_city import tinier_params

TRACK = [sys.executable, "-m", "segdistill", "track"]
RUN = "vanilla"


def without_model() -> Params:
    """The sweep of the fake metrics; there are no models to register beside them."""
    return sweep_params(tracking={"model": None})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the metrics of a sweep; calls that fail are repeated at once, and once."""
    monkeypatch.chdir(tmp_path)
    for name in ("BACKOFF_FACTOR", "BACKOFF_JITTER"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_metrics(tmp_path / "metrics")
    write_step_pictures(tmp_path / "metrics/runs/a03/distill_images", 0, 10)
    write_params(without_model())
    return tmp_path


def write_params(params: Params, folder: Path = Path()) -> None:
    (folder / "params.yaml").write_text(
        yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False), encoding="utf-8"
    )


def described(content: Content) -> dict[str, dict]:
    """All that a server has, by the name of the run; nothing may be there twice."""
    runs = {run["info"]["run_id"]: run for run in content.active()}
    names = Counter(run["info"]["run_name"] for run in runs.values())
    assert set(names.values()) == {1}, names
    found = {}
    for key, run in runs.items():
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        parent = tags.pop("mlflow.parentRunId", None)
        points = [point[1:] for point in content.metrics if point[0] == key]
        assert len({(name, step) for name, step, _ in points}) == len(points), "a point stands twice"
        assert len({param["key"] for param in run["data"]["params"]}) == len(run["data"]["params"])
        found[run["info"]["run_name"]] = {
            "tags": tags,
            "parent": runs[parent]["info"]["run_name"] if parent else None,
            "params": {param["key"]: param["value"] for param in run["data"]["params"]},
            "points": sorted(points),
            "pictures": {
                path.partition("/artifacts/")[2]: picture for path, picture in content.artifacts.items() if key in path
            },
            "status": run["info"]["status"],
            "inputs": run["inputs"],
        }
    return found


def tracked_without_a_fault(monkeypatch) -> dict[str, dict]:
    content = Content()
    with serving(content) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert track(without_model(), Path("metrics"))
    return described(content)


@pytest.mark.parametrize("fault", [DIES_BEFORE, DIES_AFTER, ANSWERS_500])
def test_a_server_that_dies_again_and_again_has_everything_once_in_the_end(home, fault, monkeypatch, capfd):
    expected, content, lives, done = tracked_without_a_fault(monkeypatch), Content(), 0, False
    assert set(expected) == {"teacher", *RUNS, *(f"{run}/distill" for run in RUNS), "vanilla/finetune", "a03/finetune"}
    assert len(expected["a03"]["pictures"]) == 4
    assert len(expected["a03/distill"]["pictures"]) == 6, "three pictures by step, each of two sizes"
    while not done and lives < 20:
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
    # Where the answer alone is lost, MLflow asks again: that makes runs twice, and the second ones have to go.
    assert fault != DIES_AFTER or len(content.runs) > len(content.active())


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
            expected[row.run] = Counter({(name, 0): 1 for name in row.metrics})
            for phase, path in row.curves.items():
                points = [(name, point.step) for point in read_curve(path) for name in point.values]
                expected[f"{row.run}/{phase}"] = Counter(points)
    assert expected.keys() >= {"teacher", *RUNS}
    assert points_in(store) == expected


RUNS_OF_ONE = [(name, run) for name, run in without_model().runs.items() if name != "light"]
RUNS_OF_OTHER = [(name, run) for name, run in without_model().runs.items() if name != "a03"]


def points_in(store: Path) -> dict[str, Counter]:
    """How often each (metric, step) of each run stands in an MLflow database."""
    with sqlite3.connect(store) as database:
        runs = database.execute("SELECT run_uuid, name FROM runs WHERE lifecycle_stage = 'active'").fetchall()
        points = database.execute("SELECT run_uuid, key, step FROM metrics").fetchall()
    assert len({name for _, name in runs}) == len(runs), "a run stands twice"
    return {name: Counter((key, step) for of, key, step in points if of == run) for run, name in runs}


def test_a_params_file_that_was_spoilt_meanwhile_costs_one_line(home):
    (home / "params.yaml").write_text("seed: [", encoding="utf-8")
    command = [sys.executable, "-m", follower.MODULE, "--run", RUN, "--phase", "distill", "--curve", "curve.csv"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        (said,) = process.stderr.readlines()  # the training has not ended: nothing is written to its stdin
    assert process.returncode == 0
    assert said.startswith("warning: no live curve of vanilla: params.yaml: not YAML")


def live_params(live: bool) -> Params:
    steps = {"steps": 4, "log_every_steps": 1, "checkpoint_every_steps": 2}
    return tinier_params(distill=steps, tracking={"live": live}, runs={RUN: RUNS[RUN]})


def outputs() -> dict[str, str]:
    names = (f"models/runs/{RUN}/distilled.safetensors", f"metrics/runs/{RUN}/distill.json")
    return {name: file_sha256(name) for name in (*names, f"metrics/runs/{RUN}/distill_curve.csv")}


@pytest.fixture(scope="module")
def city(tmp_path_factory, one_thread):
    """Prepared data, and the hashes of what a training without MLflow makes of them."""
    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = live_params(live=False)
        prepare(params.data, params.seed, PREPARED, workers=1)
        distill(params, RUN)
        write_params(live_params(live=True))
        return folder, outputs()


@pytest.fixture
def watched(city, monkeypatch):
    """Trains beside a follower that begins at once; before the last step the training waits until it has ended."""
    folder, _ = city
    monkeypatch.chdir(folder)
    monkeypatch.setattr(follower, "EXTRA", ("--wait-s", "0"))
    started, start, update = [], follower._start, train_loop.update

    def remembered(*given):
        started.append(start(*given))
        return started[-1]

    def waiting(job, optimizer, step, batch):
        until = time.monotonic() + 60
        while step == job.settings.steps - 1 and started[0].poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        return update(job, optimizer, step, batch)

    def refused(*_: object):
        raise AssertionError("a training talks to nobody")

    monkeypatch.setattr(follower, "_start", remembered)
    monkeypatch.setattr(train_loop, "update", waiting)
    monkeypatch.setattr(socket.socket, "connect", refused)
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "good_requests"),
    [("is not there", 0), (IS_SILENT, 0), (ANSWERS_500, 6), (DIES_AFTER, 11)],
)
def test_a_training_beside_a_bad_server_ends_with_the_same_bytes(
    city, watched, fault, good_requests, monkeypatch, capfd
):
    content = Content()
    with serving(content, fault, good_requests) as address:
        if fault != "is not there":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            distill(live_params(live=True), RUN)
    if fault == "is not there":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        distill(live_params(live=True), RUN)
    assert watched[0].returncode == 0
    assert outputs() == city[1]
    said = capfd.readouterr().err
    assert said.count("warning:") == 1, said
    assert "Traceback" not in said
    assert bool(content.runs) == (good_requests == 11)
