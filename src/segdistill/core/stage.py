"""A stage as a process: one message for bad input, one line when it is stopped, no life without its DVC."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

from segdistill.core.errors import exit_on_user_error
from segdistill.core.log import logger

_PR_SET_PDEATHSIG = 1  # of prctl(2)


@contextlib.contextmanager
def stage_process() -> Iterator[None]:
    """Run a stage script: bad input and a full disk are one message and exit code 1, SIGINT and SIGTERM one line.

    Stages import the library inside, because loading torch takes seconds, in which a signal may come as well.
    A training catches both signals itself, to finish its step and save. Anywhere else they end the stage at once: what
    it was writing is removed, what was finished stays.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    signal.signal(signal.SIGTERM, interrupt)
    try:
        _end_with_dvc()
        with exit_on_user_error():
            yield
    except KeyboardInterrupt as request:
        logger.error("stopped; dvc repro continues with what is not finished")
        sys.exit(128 + (request.args[0] if request.args else signal.SIGINT))


def _end_with_dvc() -> None:
    """Have Linux send a SIGTERM when the DVC that started this process ends, however it ends.

    A killed DVC would leave its stage running, and the next `dvc repro` would start a second one. dvc.yaml starts
    stages with `exec`, so that no shell stays between DVC and the stage: Linux watches the parent process alone.
    """
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # DVC may have been killed while Python was starting. DVC runs a stage in its own process group, and whoever adopts
    # orphans (init, a container's first process, a CI runner) is in another one.
    with contextlib.suppress(ProcessLookupError):  # the parent has just ended: the signal is on its way
        if os.getpgid(os.getppid()) != os.getpgrp():
            raise KeyboardInterrupt(signal.SIGTERM)
