"""Call stage scripts, the command line and DVC as a user does, each in a fork of this process.

A fork has torch imported already, so that a call costs milliseconds. It runs on one core and one thread: `prepare` then
starts no further processes, and nothing waits for a thread that a fork does not have.
"""

from __future__ import annotations

import gc
import importlib
import os
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import torch

from segdistill.cli import app
from support.preloaded import exit_code_of, take_streams

ROOT = Path(__file__).resolve().parents[2]
# What the stages import, loaded here once and not in every fork.
for _name in (
    *("prepare.run", "teacher.check", "teacher_logits.build", "student.run", "export.run", "latency.run"),
    *("results.summary", "report", "tracking"),
):
    importlib.import_module(f"segdistill.{_name}")
LIMIT_S = 120.0  # a fork that takes longer hangs


class Done(NamedTuple):
    """The end of a call; a negative exit code is the signal that ended it."""

    exit_code: int
    out: str
    err: str


def call_stage(
    folder: Path,
    stage: str,
    *arguments: str,
    headroom_bytes: int | None = None,
    first: Callable[[], object] = lambda: None,
    **environment,
) -> Done:
    """Run stages/STAGE.py in `folder`, after `first` in its process.

    With `headroom_bytes` it gets no more memory than that on top of that of this process.
    """
    script = str(ROOT / "stages" / f"{stage}.py")

    def work() -> None:
        first()
        runpy.run_path(script, run_name="__main__")

    return _forked(folder, work, [script, *arguments], environment, headroom_bytes)


def call_command(folder: Path, *arguments: str, **environment) -> Done:
    """Run `segdistill ARGUMENTS` in `folder`."""
    return _forked(folder, app, ["segdistill", *arguments], environment, None)


def call_dvc(folder: Path, *arguments: str) -> Done:
    """Run `dvc ARGUMENTS` in `folder`."""
    from dvc.cli import main

    # With DVC_TEST `--json` leaves sys.stdout alone, which colorama would set back to that of this process.
    environment = {"DVC_TEST": "1"}
    return _forked(folder, lambda: sys.exit(main(list(arguments))), ["dvc", *arguments], environment, None)


def _forked(folder: Path, work: Callable, argv: list[str], environment: dict, headroom_bytes: int | None) -> Done:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _be_the_call(folder, work, argv, environment, headroom_bytes, (out, err))
        exit_code = _waited_for(child)
        for stream in (out, err):
            stream.seek(0)
        return Done(exit_code, *(stream.read().decode("utf-8") for stream in (out, err)))


def _waited_for(child: int) -> int:
    until = time.monotonic() + LIMIT_S
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise TimeoutError(f"not over after {LIMIT_S} s")
        time.sleep(0.002)


def _be_the_call(
    folder: Path, work: Callable, argv: list[str], environment: dict, headroom_bytes: int | None, streams: tuple[IO, IO]
) -> None:
    """Run `work` as a fresh interpreter with `argv` would, and exit; never returns."""
    exit_code = 1
    try:
        gc.freeze()  # else the collector would touch, and so copy, every page of the parent
        take_streams([os.open(os.devnull, os.O_RDONLY), *(stream.fileno() for stream in streams)])
        os.chdir(folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ.update(environment)
        sys.argv = argv
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        if headroom_bytes:
            most = _address_space_bytes() + headroom_bytes
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        exit_code = exit_code_of(work)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(exit_code)


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
