"""What a sweep does, wherever its runs run: shared stages, the runs that changed, benchmark and report."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import filelock

from segdistill.core.errors import UserError, printable
from segdistill.core.files import read_json
from segdistill.params.model import Params
from segdistill.params.stages import check_named_in_dvc, shared_stages, student_stages
from segdistill.paths import SCRATCH, run_metrics
from segdistill.sweep.processes import DVC, dvc_environment, leave_if_stopped, run_alone, wait_for_killed
from segdistill.training.checkpoint import stop_requests

LOGS = SCRATCH / "sweep"  # a file per run
# Runs the stages of the runs that changed, by run, until all end, soon after a signal; returns the runs that failed.
RunChanged = Callable[[dict[str, list[str]], list[int]], list[str]]


def changed_stages() -> set[str]:
    """Return the stages that `dvc repro` would run, except for those that only follow from others.

    Raises:
        UserError: DVC cannot say, as when another DVC holds its lock.
    """
    # In a session of its own: Ctrl-C is for the caller, who looks at it afterwards.
    done = subprocess.run(
        [*DVC, "status", "--json"],
        env=dvc_environment(),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise UserError(f"dvc status: {' '.join(errors) or f'exit code {done.returncode}'}")
    return set(json.loads(done.stdout))


def in_order(params: Params, run_changed: RunChanged, last: list[str]) -> None:
    """Run what changed since the last sweep: `run_changed` the runs, the dvc command `last` what follows from them.

    Raises:
        UserError: params.yaml lacks a key that DVC needs, a stage failed, or another sweep runs in this folder.
        SystemExit: a signal stopped the sweep, and its trainings have saved their state.
    """
    check_named_in_dvc(params)
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(LOGS / "sweep.lock", timeout=0), stop_requests() as signals:
            _in_order(params, run_changed, last, signals)
    except filelock.Timeout:
        raise UserError("another segdistill sweep runs in this folder; wait for it, or end it") from None


def _in_order(params: Params, run_changed: RunChanged, last: list[str], signals: list[int]) -> None:
    started_s, stages_of, shared = time.monotonic(), student_stages(params), shared_stages(params)
    wait_for_killed()
    changed = changed_stages()
    leave_if_stopped(signals)
    if not changed:
        print(f"nothing to do: {len(stages_of)} runs, benchmark and report are up to date")
        return
    if not changed.isdisjoint(shared):
        print("shared stages: prepare, teacher-check, teacher-logits", flush=True)
        run_alone(["repro", *shared], "a stage that all runs share failed", signals)
        changed = changed_stages()
        leave_if_stopped(signals)

    done: list[str] = []
    failed: list[str] = []
    for is_repetition in (False, True):  # a repetition reads the result of its run
        if is_repetition:
            names = [name for run in params.runs if run not in failed for name in params.repetitions(run)]
            changed = changed_stages() if names and done else changed
        else:
            names = list(params.runs)
        waiting = {name: stages_of[name] for name in names if not changed.isdisjoint(stages_of[name])}
        if waiting:
            failed += run_changed(waiting, signals)
            leave_if_stopped(signals)
            done += waiting
    if failed:
        named = "\n".join(f"  - {run}: {log_of(run)}" for run in failed)
        raise UserError(
            f"{len(failed)} of {len(done)} runs failed; benchmark and report wait for them; their logs:\n{named}"
        )
    run_alone(last, "benchmark or report failed", signals)
    print(f"done in {time.monotonic() - started_s:.0f} s")


def log_of(run: str) -> Path:
    """Return the file of what `run` prints."""
    return LOGS / f"{run}.log"


def print_end(run: str, took: str, has_failed: bool) -> None:
    """Print a line on a run that ended: its mIoU, or why it failed."""
    if has_failed:
        lines = log_of(run).read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.lower().startswith("error: ")]
        cause = printable(errors[0][:200]) if errors else "no message"
        print(f"failed {run} {took}: {cause}; log {log_of(run)}", flush=True)
        return
    try:
        mean_iou = f"{read_json(run_metrics(run) / 'finetune.json')['mean_iou']:.2%}"
    except (OSError, UserError, KeyError, TypeError, ValueError):  # the run is done all the same
        mean_iou = "unknown"
    print(f"finished {run} {took}: mIoU {mean_iou}", flush=True)
