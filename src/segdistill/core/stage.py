"""A stage as a process: tells faults plainly, ends when it is asked to, and when the DVC that started it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from segdistill.core.errors import exit_on_user_error

# Where DVC names the processes that run stages, and what they read and write.
_LOCK = Path(".dvc/tmp/rwlock")


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
        with exit_on_user_error():
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
    running = _running_dvcs()
    if running is None:
        return
    try:
        pid = _dvc_of(running)
        dvc = os.pidfd_open(pid)
        _dvc_of({pid})  # else it ended before we opened it, and its number may be another's by now
    except ProcessLookupError:  # it was killed while Python was starting
        raise KeyboardInterrupt(signal.SIGTERM) from None
    except OSError:  # a kernel before 5.3
        return
    threading.Thread(target=_stop_after, args=(dvc,), daemon=True, name="waits for DVC").start()


def _running_dvcs() -> set[int] | None:
    """The processes that run stages of this workspace, by the file in which DVC writes that down; None without it."""
    here = Path.cwd()
    lock = next((folder / _LOCK for folder in (here, *here.parents) if (folder / _LOCK).is_file()), None)
    for _ in range(50 if lock else 0):
        try:
            held = json.loads(lock.read_text())
            readers = [reader for readers in held.get("read", {}).values() for reader in readers]
            return {holder["pid"] for holder in (*readers, *held.get("write", {}).values())}
        except (OSError, ValueError):  # another DVC is writing it: not a whole JSON file for that moment
            time.sleep(0.02)
    return None


def _dvc_of(running: set[int]) -> int:
    """That of the `running` processes from which we descend; whatever shells stand between.

    Who adopts the children of the dead (init, a container's first process, a supervisor) is not among them.

    Raises:
        ProcessLookupError: there is none.
    """
    pid = os.getppid()
    while pid not in running:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            raise ProcessLookupError from None
    return pid


def _stop_after(process: int) -> None:
    """Wait for the end of `process`, a pidfd, and ask ourselves to stop."""
    select.select([process], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
