"""One run of a sweep in a clone, on any machine: pull what it reads, run its stages, push what they wrote.

The clone has the commit, params.yaml, dvc.lock and the DVC remote of the machine at home, where the shared stages have
run and were pushed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.params.model import Params
from segdistill.params.read import known_run
from segdistill.params.stages import shared_stages, student_stages
from segdistill.sweep.processes import DVC, dvc_environment, run_alone
from segdistill.training.checkpoint import stop_requests

LOCK = Path("dvc.lock")


def work(params: Params, run: str) -> dict[str, dict]:
    """Run the stages of `run` or restore them, and return their entries of dvc.lock by stage.

    What DVC and the stages print goes to stderr.

    Raises:
        UserError: no such run, no remote, shared stages that dvc.lock does not have, or a stage that failed.
        SystemExit: a signal stopped it, and its training has saved its state.
    """
    stages = student_stages(params)[known_run(params, run)]
    default_remote()  # else the push would find out, after hours
    missing = sorted(set(shared_stages(params)) - locked().keys())
    if missing:
        raise UserError(
            f"{LOCK}: no entry of {', '.join(missing)}; run the shared stages on one machine, dvc push them, and bring "
            f"its {LOCK} here"
        )
    with stop_requests() as signals:
        kind = params.student(run).teacher
        if run not in params.runs and kind != "none":
            # A repetition reads the logits, and names the result of its run in their place.
            run_alone(["repro", "--pull", "--single-item", f"teacher-logits@{kind}"], run, signals, sys.stderr)
        command = ["repro", "--pull", "--single-item", *stages]
        run_alone(command, f"{run}: a stage failed", signals, sys.stderr)
        # The run cache lets a plain `dvc repro --pull` at home restore these stages, without their entries.
        run_alone(["push", "--run-cache", *stages], f"{run}: dvc push failed", signals, sys.stderr)
    return {stage: locked()[stage] for stage in stages}


def default_remote() -> str:
    """Return the name of DVC's default remote.

    Raises:
        UserError: there is none.
    """
    command = [*DVC, "config", "core.remote"]
    done = subprocess.run(command, env=dvc_environment(), capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        raise UserError("no default DVC remote, which artifacts travel by; add one: dvc remote add -d NAME URL")
    return done.stdout.strip()


def locked() -> dict[str, dict]:
    """Return the entries of dvc.lock by stage; none where there is no such file."""
    from dvc.utils.serialize import load_yaml  # PyYAML would take 1e-05 for text

    return load_yaml(LOCK)["stages"] if LOCK.exists() else {}
