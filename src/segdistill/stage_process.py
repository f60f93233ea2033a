"""A stage as a process: tells faults plainly, ends when it is asked to, and when the DVC that started it is gone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from segdistill.errors import told_plainly

# DVC runs a command through the user's shell. bash and zsh replace themselves by a lone command, dash does not.
_SHELLS = ("sh", "dash", "ash", "bash", "zsh", "fish", "ksh")


@contextlib.contextmanager
def stage_process() -> Iterator[None]:
    """Run a stage script: bad input and a full disk are one message and exit code 1, SIGINT and SIGTERM one line.

    Stages import the library inside, because loading torch takes seconds in which they may be asked to stop as well.
    A training catches both signals itself, to finish its step and save (see scratch.stop_requests). Anywhere else they
    end the stage at once: what it was writing is removed, what was finished stays.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _end_with_dvc()
        with told_plainly():
            yield
    except KeyboardInterrupt as request:
        number = request.args[0] if request.args else signal.SIGINT
        print("error: stopped; dvc repro goes on with what is not finished", file=sys.stderr)
        sys.exit(128 + number)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _end_with_dvc() -> None:
    """Have Linux tell us when the DVC that started us has ended, and end then as if by a SIGTERM.

    A killed DVC leaves its stage running, and the next `dvc repro` starts a second one beside it.
    """
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    try:
        pid = _dvc()
        if _adopts(pid):
            raise ProcessLookupError
        dvc = os.pidfd_open(pid)
    except (ProcessLookupError, FileNotFoundError):  # it was killed while Python was starting
        raise KeyboardInterrupt(signal.SIGTERM) from None
    except OSError:  # a kernel before 5.3
        return
    threading.Thread(target=_stop_after, args=(dvc,), daemon=True, name="waits for DVC").start()


def _dvc() -> int:
    """The process that runs us: our parent, or its parent where that is a shell that does not replace itself."""
    parent = Path(f"/proc/{os.getppid()}")
    # The system keeps 15 letters of a name; DVC takes the shell of the environment, whatever its name is.
    is_shell = (parent / "comm").read_text().strip() in (*_SHELLS, Path(os.environ.get("SHELL", "")).name[:15])
    return int((parent / "stat").read_text().rsplit(")", 1)[1].split()[1]) if is_shell else int(parent.name)


def _adopts(pid: int) -> bool:
    """Whether `pid` is no DVC but who takes the children of the dead."""
    if pid == 0:  # the parent of a container's first process
        return True
    is_system = pid == 1 or Path(f"/proc/{pid}/comm").read_text().strip() == "systemd"
    return is_system and os.getsid(pid) != os.getsid(0)  # in a container DVC itself may be process 1


def _stop_after(process: int) -> None:
    """Wait for the end of `process`, a pidfd, and ask ourselves to stop."""
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
