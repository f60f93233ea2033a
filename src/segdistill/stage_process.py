"""A stage as a process: tells faults plainly, ends when it is asked to, and when the DVC that started it is gone."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from segdistill.errors import told_plainly

_PR_SET_PDEATHSIG = 1  # prctl(2)


@contextlib.contextmanager
def stage_process() -> Iterator[None]:
    """Run a stage script: bad input and a full disk are one message and exit code 1, SIGINT and SIGTERM one line.

    A training catches both signals itself, to finish its step and save (see scratch.stop_requests). Anywhere else they
    end the stage at once: what it was writing is removed, what was finished stays.
    """
    _end_with_dvc()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with told_plainly():
            yield
    except KeyboardInterrupt as request:
        number = request.args[0] if request.args else signal.SIGINT
        print("error: stopped; dvc repro goes on with what is not finished", file=sys.stderr)
        sys.exit(128 + number)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _end_with_dvc() -> None:
    """Ask Linux for a SIGTERM when our parent ends, where that is DVC (shells replace themselves by a lone command).

    A killed DVC leaves its stage running, and the next `dvc repro` starts a second one beside it.
    """
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
