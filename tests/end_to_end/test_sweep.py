"""`segdistill sweep --jobs 2`, interrupted and killed, ends with the bytes of a serial `dvc repro`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from support.checkout import Checkout
from support.waiting import wait_until

pytestmark = pytest.mark.slow
LIMIT_S = 300
STUDENTS = ["vanilla", "a03-lr01", "a03-lr01-1"]
MEASURING = {"benchmark", "report"}  # whose metrics are times
SWEEP = (sys.executable, "-m", "segdistill", "sweep", "--jobs", "2")


def checkout_of_repeated_runs(folder: Path, preloaded: bool = False) -> Checkout:
    """Return a copy with two runs, one of which has two seeds."""
    made = Checkout(folder, preloaded)
    del made.params["runs"]["light"]
    made.params["seeds"] = [1]
    made.params["runs"]["vanilla"]["seed"] = 1  # so it is not repeated
    # Enough steps that every interruption meets a training.
    made.params["distill"] |= {
        "steps": 40,
        "crop_px": [32, 64],
        "evaluate_every_steps": 20,
        "checkpoint_every_steps": 2,
    }
    made.save_params()
    return made


def checkpoints(checkout: Checkout) -> set[int]:
    """Return when each checkpoint of a student's first steps was written."""
    return {path.stat().st_mtime_ns for path in (checkout.folder / "scratch/distill").rglob("state.pt")}


def logs(checkout: Checkout) -> str:
    return "".join(path.read_text() for path in (checkout.folder / "scratch/sweep").glob("*.log"))


class StartedSweep:
    """A sweep in the background that has written checkpoints of two trainings since it started."""

    def __init__(self, checkout: Checkout) -> None:
        before = checkpoints(checkout)
        self.process = checkout.start(*SWEEP)
        wait_until(lambda: len(checkpoints(checkout) - before) > 1 or self.process.poll() is not None, "no checkpoints")
        assert self.process.poll() is None, checkout.said.read_text()
        self.started = psutil.Process(self.process.pid).children(recursive=True)
        assert sum("stages/distill.py" in process.cmdline() for process in self.started) == 2

    def wait_for_children(self) -> None:
        wait_until(lambda: not any(map(runs, self.started)), "a stage outlives its sweep")


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_interrupted_sweep_gives_the_bytes_of_serial_repro(tmp_path):
    checkout = checkout_of_repeated_runs(tmp_path / "sweep")
    serial = checkout_of_repeated_runs(tmp_path / "serial", preloaded=True)

    # Ctrl-C in a terminal reaches the sweep alone: each run is in a process group of its own.
    sweep = StartedSweep(checkout)
    sweep.process.send_signal(signal.SIGINT)
    assert sweep.process.wait(LIMIT_S) == 130
    assert not any(map(runs, sweep.started))
    assert "the same command continues" in checkout.said.read_text()
    assert logs(checkout).count("stopped after step") == 2

    sweep = StartedSweep(checkout)
    assert logs(checkout).count("continues after step") == 2
    sweep.process.kill()
    sweep.process.wait()
    sweep.wait_for_children()

    done = checkout.call(*SWEEP)
    assert done.returncode == 0, done.stdout + done.stderr
    assert logs(checkout).count("continues after step") == 2
    # The runs first: the repetition reads the result of its run.
    started = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("started")]
    assert started == STUDENTS
    assert "(2 of 2)" in done.stdout
    assert "(1 of 1)" in done.stdout
    for student in STUDENTS:
        assert f"mIoU {checkout.metrics(f'runs/{student}/finetune.json')['mean_iou']:.2%}" in done.stdout
    assert set(checkout.metrics("summary.json")["runs"]) == set(STUDENTS)
    assert checkout.call(*SWEEP).stdout.startswith("nothing to do: 3 runs")
    assert checkout.dvc("repro") == []

    names = serial.params["runs"]
    serial.dvc("repro", *(f"export-onnx@{run}" for run in names), *(f"export-onnx-repeat@{run}-1" for run in names))
    assert serial.lock() == {name: entry for name, entry in checkout.lock().items() if name not in MEASURING}
