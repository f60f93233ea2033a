"""A process beside a training that shows its curve in MLflow while it grows: python -m segdistill.tracking.live_curves.

The training writes its curve to a file and knows nothing of MLflow (see follower.py). What is not shown here in the
end, `segdistill track` brings in.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from segdistill.base.errors import InputError
from segdistill.base.files import read_json
from segdistill.base.params import Params
from segdistill.base.params_file import load_params
from segdistill.tracking.rows import Row, read_curve, read_step_pictures, row_of
from segdistill.tracking.store import Store, check_reachable, find_store, locked, quiet_and_patient_for
from segdistill.training.follower import PICTURES

WAIT_S = 8.0  # a training that is over by then has never paid for the import of mlflow
POLL_S = 2.0
LOCK_S = 3.0
SAMPLE_S = 10.0
INDEX = Path("data/prepared/index.json")


class Ending:
    """How the training ended: the word that it writes to our stdin, KILLED where it vanished without one."""

    def __init__(self) -> None:
        self.status, self.at_once = "", True
        self._parent, self._ended = os.getppid(), threading.Event()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training, which then tells us
        signal.signal(signal.SIGTERM, lambda *_: self._end("FINISHED"))
        threading.Thread(target=lambda: self._end(sys.stdin.readline().strip() or "KILLED"), daemon=True).start()

    def _end(self, status: str) -> None:
        if self.at_once:
            # In the middle of an import or of setting things up: slow, and nothing that must be ended.
            os._exit(0)
        self.status = self.status or status
        self._ended.set()

    def comes_within(self, seconds: float) -> bool:
        """Wait for the end, at most for `seconds`."""
        if os.getppid() != self._parent:
            self._end("KILLED")  # its workers may hold our stdin open
        return self._ended.wait(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Show the growing curve of a training in MLflow.")
    parser.add_argument("--run", required=True)
    parser.add_argument("--phase", required=True, choices=("distill", "finetune", "train"))
    parser.add_argument("--curve", required=True, type=Path)
    parser.add_argument("--wait-s", type=float, default=WAIT_S, help="before MLflow is touched")
    parser.add_argument("--sample-s", type=float, default=SAMPLE_S, help="between two system metrics")
    arguments = parser.parse_args()
    ending = Ending()
    os.nice(10)
    try:
        params = load_params()  # before the wait: the training has read this file just now, and it may be edited soon
    except (InputError, OSError) as error:  # it has been already
        print(f"warning: no live curve of {arguments.run}: {str(error).splitlines()[0]}", file=sys.stderr)
        return
    time.sleep(arguments.wait_s)
    store = find_store(params.tracking.uri)
    quiet_and_patient_for(timeout_s=2)

    from segdistill.tracking import told_as_warning

    told_as_warning(store, lambda: _follow(ending, store, params, arguments))


def _follow(ending: Ending, store: Store, params: Params, arguments: argparse.Namespace) -> None:
    from segdistill.tracking import Experiment

    check_reachable(store)
    row = row_of(params, arguments.run, read_json(INDEX)["fingerprint"])
    with locked(store, LOCK_S):
        curve = _curve(Experiment(store, params.tracking.experiment), row, arguments.phase)
    samples = _samples(arguments.sample_s) if params.tracking.system_metrics else None
    pictures = arguments.curve.parent / PICTURES
    ending.at_once = False
    over = False
    while not over:
        over = ending.comes_within(POLL_S)
        if samples and not over:
            samples.take_when_due()
        # Whoever tracks everything meanwhile is let through; the next round brings the points in.
        with contextlib.nullcontext() if over else contextlib.suppress(TimeoutError), locked(store, LOCK_S):
            curve.bring_in(read_curve(arguments.curve), whole=False)
            curve.bring_in_pictures(read_step_pictures(pictures))
            if samples:
                curve.log_system_metrics(samples.taken)
                samples.taken.clear()
    curve.end(ending.status)


def _samples(every_s: float):
    from segdistill.tracking.machine import Samples

    return Samples(os.getppid(), every_s)


def _curve(experiment, row: Row, phase: str):
    known = experiment.known(row.run)
    curve = experiment.curve(row, phase, experiment.bring_in(row, known), known)
    curve.end("RUNNING")
    return curve


if __name__ == "__main__":
    main()
