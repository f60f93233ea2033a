"""Processes of DVC that end with the one that started them, and that a signal stops in order."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import psutil

from segdistill.core.errors import UserError
from segdistill.core.log import logger

DVC = [sys.executable, "-m", "dvc"]
POLL_S = 0.1
DVC_BLOCKERS = Path(".dvc/tmp/rwlock")  # the processes that DVC waits for, by the path that each reads or writes
MAX_REAP_S = 20.0
PR_SET_PDEATHSIG = 1  # of prctl(2)
PARENT_VARIABLE = "SEGDISTILL_PARENT"  # the process id by which `segdistill work` knows the worker that started it


def dvc_environment() -> dict[str, str]:
    """Return an environment in which stages run by this Python, whether its environment is activated or not."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


class DvcProcess:
    """A `dvc` process in a process group of its own: Ctrl-C reaches this process alone, which passes it on."""

    def __init__(self, arguments: list[str], environment: dict[str, str], output: IO | None = None) -> None:
        prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

        def prepare() -> None:
            # A shell starts background jobs with SIGINT ignored, and children would inherit that.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if prctl is not None:
                prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a killed sweep leaves no run behind

        self.started_s, self._passed_on = time.monotonic(), 0
        self._process = subprocess.Popen(  # noqa: PLW1509 - it takes no lock that a thread of Ray may hold
            [*DVC, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=prepare,
        )

    @property
    def exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._process.poll()

    def pass_on(self, signals: list[int]) -> None:
        """Interrupt DVC and its stage at the first of the received signals: a training finishes its step and saves.

        Kill them at the second.
        """
        while self._passed_on < len(signals) and self.exit_code is None:
            os.killpg(self._process.pid, signal.SIGKILL if self._passed_on else signal.SIGINT)
            self._passed_on += 1


def run_alone(arguments: list[str], error: str, signals: list[int], output: IO | None = None) -> None:
    """Run one `dvc` on this terminal, with all cores; with `output`, all that it prints goes there.

    Raises:
        UserError: it failed; the message is `error`.
        SystemExit: a signal stopped it.
    """
    child = DvcProcess(arguments, dvc_environment(), output)
    while child.exit_code is None:
        child.pass_on(signals)
        time.sleep(POLL_S)
    leave_if_stopped(signals)
    if child.exit_code:
        raise UserError(f"{error}; its message is above")


def wait_for_killed() -> None:
    """Wait until no `dvc` of a killed command is left as a zombie, which DVC would take for a running one."""
    try:
        blockers = json.loads(DVC_BLOCKERS.read_text(encoding="utf-8"))
        infos = [*blockers["write"].values(), *(info for infos in blockers["read"].values() for info in infos)]
        pids = {int(info["pid"]) for info in infos}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # DVC makes it, and says what is wrong with it
    end_s = time.monotonic() + MAX_REAP_S
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            while psutil.Process(pid).status() == psutil.STATUS_ZOMBIE and time.monotonic() < end_s:
                time.sleep(POLL_S)


def leave_if_stopped(signals: list[int]) -> None:
    """Raise SystemExit when a signal has stopped the processes."""
    if signals:
        logger.error("stopped; the same command continues with what is not finished")
        raise SystemExit(128 + signals[0])


def end_with_parent() -> None:
    """Have Linux send a SIGTERM when the process that PARENT_VARIABLE names ends, however it ends; do nothing without.

    Ray kills the processes of its workers, and leaves what they started running.
    """
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != int(parent):  # it ended while Python was starting
            raise SystemExit(128 + signal.SIGTERM)
