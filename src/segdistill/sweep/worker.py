"""One run of a sweep in a clone, on any machine: pull what it reads, run its stages, push what they wrote.

The clone has the commit, params.yaml, dvc.lock and the DVC remote of the machine at home, where the shared stages have
run and were pushed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.provenance import THREADS_VARIABLE
from segdistill.params.model import Params
from segdistill.params.read import known_run
from segdistill.params.stages import TRAININGS, shared_stages, student_stages
from segdistill.sweep.processes import DVC, PARENT_VARIABLE, POLL_S, dvc_environment, run_alone
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
        if changed := changed_inputs(stages, locked()):
            run_alone(["pull", *changed], f"{run}: dvc pull failed", signals, sys.stderr)
        kind = params.student(run).teacher
        if run not in params.runs and kind != "none" and _will_run(stages[: len(TRAININGS)]):
            # A repetition reads the logits, and names the results of its run in their place.
            run_alone(["repro", "--pull", "--single-item", f"teacher-logits@{kind}"], run, signals, sys.stderr)
        command = ["repro", "--pull", "--single-item", *stages]
        run_alone(command, f"{run}: a stage failed", signals, sys.stderr)
        # The run cache lets a plain `dvc repro --pull` at home restore these stages, without their entries.
        run_alone(["push", "--run-cache", *stages], f"{run}: dvc push failed", signals, sys.stderr)
    return {stage: locked()[stage] for stage in stages}


def changed_inputs(stages: list[str], lock: dict[str, dict]) -> list[str]:
    """Return what `stages` read that was written anew since they ran, by the entries of dvc.lock.

    DVC takes an input that is not there for unchanged, and would restore the outputs of before.
    """
    written = {out["path"]: out.get("md5") for entry in lock.values() for out in entry.get("outs", ())}
    changed = []
    for dep in (dep for stage in stages for dep in lock.get(stage, {}).get("deps", ())):
        path = dep["path"]
        inside = any(folder in written for folder in map(str, Path(path).parents))  # of a folder that is written whole
        if inside or written.get(path, dep.get("md5")) != dep.get("md5"):
            changed.append(path)
    return list(dict.fromkeys(changed))


def _will_run(stages: list[str]) -> bool:
    """Return whether DVC will run one of `stages`, and not only pull what it wrote."""
    from dvc.repo import Repo, lock_repo

    with Repo() as repo, lock_repo(repo):
        return any(stage.changed(allow_missing=True) for name in stages for stage in repo.stage.collect(name))


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


class Job(NamedTuple):
    """What the runs of one sweep have in common, besides the commit.

    Attributes:
        project: names the folders of this project in the cache and on the scratch that machines share.
        params, lock, config: the content of params.yaml, dvc.lock and .dvc/config.local.
        threads: of a run.
    """

    project: str
    params: str
    lock: str
    config: str
    threads: int


class Result(NamedTuple):
    """What a run printed and where it ran; its entries of dvc.lock, None when it failed."""

    host: str
    log: str
    entries: dict[str, dict] | None


def run_in_clone(job: Job, bundle: bytes, run: str) -> Result:
    """Run `segdistill work RUN` in a clone of the git bundle, with the clone's own code."""
    with tempfile.TemporaryDirectory(prefix="segdistill-") as scratch:
        file, clone = Path(scratch) / "bundle", Path(scratch) / "clone"
        file.write_bytes(bundle)
        subprocess.run(
            ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", str(file), str(clone)], check=True
        )
        (clone / "params.yaml").write_text(job.params, encoding="utf-8")
        (clone / "dvc.lock").write_text(job.lock, encoding="utf-8")
        # Clones on a machine share what they pull: prepared data and logits are links into one cache.
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segdistill" / job.project
        links = f'[cache]\n    dir = "{cache}"\n    type = "hardlink,symlink"\n'
        (clone / ".dvc" / "config.local").write_text(f"{job.config}\n{links}", encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": f"{clone / 'src'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",  # before an installed one
            "DVC_SITE_CACHE_DIR": str(Path(scratch) / "site"),  # DVC would leave a folder for each clone
            THREADS_VARIABLE: str(job.threads),
            PARENT_VARIABLE: str(os.getpid()),
        }
        if shared := os.environ.get("SEGDISTILL_SCRATCH"):
            environment["SEGDISTILL_SCRATCH"] = str(Path(shared) / job.project)
        entries, log = Path(scratch) / "entries.json", Path(scratch) / "log"
        with entries.open("w") as stdout, log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "segdistill", "work", run],
                cwd=clone,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
            )
            try:
                # Ray cancels a task by a KeyboardInterrupt between two instructions of Python, not in a wait().
                while process.poll() is None:
                    time.sleep(POLL_S)
            finally:
                process.terminate()  # its training finishes the step and saves
                process.wait()
        return Result(
            host=socket.gethostname(),
            log=log.read_text(encoding="utf-8", errors="replace"),
            entries=json.loads(entries.read_text()) if process.returncode == 0 else None,
        )
