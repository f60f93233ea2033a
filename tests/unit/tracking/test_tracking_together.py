"""Machines that track one sweep at the same moment: in the end everything is there once, in any order."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from segdistill.params.model import Params
from segdistill.tracking.mlflow import CREATED_TAG, track
from support.fake_metrics import RUNS, sweep_params, write_metrics
from support.fake_mlflow_server import Content, described, serving
from support.sweep_on_disk import write_step_images

MEETING_S = 30


class SharedContent(Content):
    """What several servers of one database keep; each server is that of one machine.

    All machines create a run before any of them sees that of another. Every call takes a random while.
    """

    def __init__(self, machines: int, seed: int) -> None:
        super().__init__()
        self.delays, self.one_call = random.Random(seed), threading.Lock()
        self.meetings = {run: threading.Barrier(machines) for run in ("teacher", *RUNS)}

    def answer(self, call: str, given: dict) -> dict | None:
        # A machine that comes late, or again because its run was deleted, meets nobody.
        if call == "runs/create":
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meetings[given["run_name"]].wait(MEETING_S)
            self.meetings[given["run_name"]].abort()
        time.sleep(self.delays.uniform(0, 0.01))
        with self.one_call:
            return super().answer(call, given)


def on_server(address: str) -> Params:
    return sweep_params(tracking={"model": None, "uri": address})


@pytest.fixture
def metrics(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_metrics(tmp_path / "metrics")
    write_step_images(tmp_path / "metrics/runs/a03/distill_images", 0, 10)
    return tmp_path / "metrics"


@pytest.mark.parametrize("seed", range(3))
def test_machines_that_track_a_sweep_at_once_make_one_row_of_each_run(metrics, seed):
    alone = Content()
    with serving(alone) as address:
        assert track(on_server(address), metrics)
    shared, machines = SharedContent(3, seed), 3
    with contextlib.ExitStack() as stack:
        # Each has an address of its own, so that they do not share the lock of one machine.
        addresses = []
        for _ in range(machines):
            shared.port = 0
            addresses.append(stack.enter_context(serving(shared)))
        with ThreadPoolExecutor(machines) as threads:
            done = list(threads.map(lambda address: track(on_server(address), metrics), addresses))
    assert done == [True] * machines
    assert len(shared.runs) >= machines * (1 + len(RUNS)), "each of them has created each run"
    assert described(shared) == described(alone)


def test_the_row_of_a_machine_whose_run_was_deleted_is_written_to_the_older_one(metrics, monkeypatch):
    """The other machine took its number first, and was slow to create its run."""
    content, older = Content(), []
    log_batch = content.runs_log_batch

    def late(given: dict) -> dict:
        run = content.runs[given["run_id"]]
        if run["info"]["run_name"] == "a03" and not older:
            tags = [dict(tag) for tag in run["data"]["tags"]]
            next(tag for tag in tags if tag["key"] == CREATED_TAG)["value"] = f"{1:020d}"
            other = {"experiment_id": "1", "run_name": "a03", "tags": tags, "start_time": 5}
            older.append(content.runs_create(other)["run"]["info"]["run_id"])
            content.runs_delete(given)
        return log_batch(given)

    monkeypatch.setattr(content, "runs_log_batch", late)
    with serving(content) as address:
        assert track(on_server(address), metrics)
    (row,) = [run for run in content.active() if run["info"]["run_name"] == "a03"]
    assert row["info"]["run_id"] == older[0]
    assert {metric["key"] for metric in row["data"]["metrics"]} >= {"val/mean_iou", "curve/loss"}
