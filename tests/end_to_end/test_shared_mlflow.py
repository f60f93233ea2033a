"""A team's MLflow server, with users, on PostgreSQL: nothing lost, nothing twice, nothing without a password."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from segdistill.tracking.mlflow import Experiment, track
from segdistill.tracking.rows import Point, Row
from segdistill.tracking.store import Store, find_store
from support.fake_metrics import RUNS, sweep_params, write_metrics
from support.mlflow_on_postgresql import PASSWORDS, Server, as_user, mlflow_server
from support.sweep_on_disk import write_step_images

pytestmark = pytest.mark.slow
WRITERS, POINTS = 8, 1000


@pytest.fixture(scope="module")
def server():
    with mlflow_server() as running:
        yield running


def stored(server: Server, experiment: str) -> dict[str, list[Counter]]:
    """Return how often PostgreSQL has each (metric, step) of each run, by name; a name may have several runs."""
    import psycopg

    found: dict[str, list[Counter]] = {}
    with psycopg.connect(server.database) as database:
        runs = database.execute(
            "SELECT run_uuid, runs.name FROM runs JOIN experiments USING (experiment_id)"
            " WHERE experiments.name = %s AND runs.lifecycle_stage = 'active'",
            [experiment],
        ).fetchall()
        for run, name in runs:
            points = database.execute("SELECT key, step FROM metrics WHERE run_uuid = %s", [run]).fetchall()
            found.setdefault(name, []).append(Counter(points))
    return found


def test_eight_writers_at_once_lose_nothing(server):
    points = tuple(Point(step, {"curve/loss": 1 / step}) for step in range(1, POINTS + 1))
    rows = [
        Row(f"writer-{n}", f"key-{n}", {"alpha": str(n)}, {}, ("city", "data"), {"val/mean_iou": n / 10}, points)
        for n in range(WRITERS)
    ]
    store = Store(server.address, server.address)
    names = {row.run for row in rows}

    def write(row: Row) -> None:
        Experiment(store, "writers").upsert([row], names)

    with as_user("ann"):
        Experiment(store, "writers")
        with ThreadPoolExecutor(WRITERS) as threads:
            list(threads.map(write, rows))
    once = Counter([("val/mean_iou", 0), *(("curve/loss", step) for step in range(1, POINTS + 1))])
    assert stored(server, "writers") == {row.run: [once] for row in rows}


@pytest.mark.parametrize("password", [None, "a-wrong-password"])
def test_nobody_reads_or_writes_without_a_password(server, password, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.address}/api/2.0/mlflow/experiments/get?experiment_id=0", timeout=30)
    params = sweep_params(tracking={"model": None, "uri": server.address, "experiment": "refused"})
    write_metrics(tmp_path / "metrics")
    with as_user(None):
        if password:
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        assert not track(params, tmp_path / "metrics")
    (warning,) = capfd.readouterr().err.splitlines()
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in warning
    assert str(password) not in warning
    assert stored(server, "refused") == {}


def write_sweep(folder: Path, server: Server, experiment: str) -> None:
    write_metrics(folder / "metrics")
    write_step_images(folder / "metrics/runs/a03/distill_images", 0, 10)
    params = sweep_params(tracking={"model": None, "uri": server.address, "experiment": experiment})
    (folder / "params.yaml").write_text(yaml.safe_dump(params.model_dump(mode="json"), sort_keys=False))


def expect_one_row_each(server: Server, experiment: str) -> None:
    found = stored(server, experiment)
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(["teacher", *RUNS], 1)
    for (points,) in found.values():
        assert set(points.values()) == {1}, "a point is there twice"
    assert found["a03"][0].keys() >= {("curve/loss", 5), ("curve/loss", 16), ("val/mean_iou", 0)}
    with as_user("ann"):
        client = Experiment(Store(server.address, server.address), experiment).client
        run = next(run for run in client.search_runs([_id(client, experiment)]) if run.info.run_name == "a03")
        images = client.list_artifacts(run.info.run_id, "images")
    assert len(images) == 4, "two images by step, each of two sizes"


def _id(client, experiment: str) -> str:
    return client.get_experiment_by_name(experiment).experiment_id


def test_two_machines_and_users_that_track_one_sweep_make_one_row_of_each_run(server, tmp_path):
    processes = []
    for user in ("ann", "bob"):
        folder, own = tmp_path / user, tmp_path / f"{user}-tmp"
        own.mkdir()
        write_sweep(folder, server, "together")
        # Processes of one machine share a lock in its folder for temporary files.
        own_env = {"TMPDIR": str(own), "MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": PASSWORDS[user]}
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | own_env
        command = [sys.executable, "-m", "segdistill", "track"]
        processes.append(subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True))
    assert [process.communicate(timeout=120)[1] for process in processes] == ["", ""]
    expect_one_row_each(server, "together")


def test_machines_that_both_find_no_row_make_one(server, tmp_path, monkeypatch):
    """The same without luck: each machine looks for a row before any of them creates it."""
    monkeypatch.chdir(tmp_path)
    write_sweep(tmp_path, server, "met")
    find, once = Experiment._find, {run: threading.Barrier(2, timeout=60) for run in ("teacher", *RUNS)}

    def found_at_once(experiment: Experiment, row: Row):
        found = find(experiment, row)
        if found is None:
            once[row.run].wait()
        return found

    monkeypatch.setattr(Experiment, "_find", found_at_once)
    # Two names of one server, so that the two do not share the lock of one machine.
    addresses = [server.address, server.address.replace("127.0.0.1", "localhost")]
    experiment = {"model": None, "experiment": "met"}
    with as_user("ann"), ThreadPoolExecutor(2) as threads:
        assert find_store(addresses[0]) != find_store(addresses[1])
        params = [sweep_params(tracking=experiment | {"uri": address}) for address in addresses]
        assert list(threads.map(lambda one: track(one, tmp_path / "metrics"), params)) == [True, True]
    expect_one_row_each(server, "met")
