"""A stage as a process: one message for bad input, one line when it is stopped, no life without its DVC."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from segdistill.core.errors import exit_on_user_error, message_to_user
from segdistill.core.log import logger

_PR_SET_PDEATHSIG = 1  # of prctl(2)
# Where a run has several devices: torchrun names a file for the error that ends a rank, `parallel.launch` the process
# that started it.
ERROR_FILE_VARIABLE, LAUNCHER_VARIABLE = "TORCHELASTIC_ERROR_FILE", "SEGDISTILL_LAUNCHER"


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
    error_file = os.environ.get(ERROR_FILE_VARIABLE)
    try:
        _end_with_parent()
        with _error_to_file(Path(error_file)) if error_file else exit_on_user_error():
            yield
    except KeyboardInterrupt as request:
        if not error_file:  # else who started the ranks says it, once
            logger.error("stopped; dvc repro continues with what is not finished")
        sys.exit(128 + (request.args[0] if request.args else signal.SIGINT))


@contextlib.contextmanager
def _error_to_file(path: Path) -> Iterator[None]:
    """Write the error of the body to a file, as torchrun reads it, and exit with 1.

    An error of one rank ends the others by later errors, about a lost connection. Who started them prints the first.
    """
    try:
        yield
    except Exception as error:
        to_user, now_s = message_to_user(error), time.time()
        message = {"message": to_user or traceback.format_exc(), "extraInfo": {"timestamp": str(int(now_s))}}
        found = {"message": message, "time_s": now_s, "is_bug": to_user is None}
        path.write_text(json.dumps(found), encoding="utf-8")
        sys.stdout.flush()
        sys.stderr.flush()
        # At once: torchrun now sends signals to all ranks, and libraries may wait for lost ones while Python ends.
        os._exit(1)


def _end_with_parent() -> None:
    """Have Linux send a SIGTERM when the DVC or the stage that started this process ends, however it ends.

    A killed DVC would leave its stage running, and the next `dvc repro` would start a second one. dvc.yaml starts
    stages with `exec`, so that no shell stays between DVC and the stage: Linux watches the parent process alone.
    """
    launcher = os.environ.get(LAUNCHER_VARIABLE)  # of a rank
    if sys.platform != "linux" or not (launcher or "DVC_STAGE" in os.environ):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # DVC may have been killed while Python was starting. DVC runs a stage in its own process group, and the
    # process that adopts orphans (init, a container's first process, a CI runner) is in another one.
    with contextlib.suppress(ProcessLookupError):  # the parent has just ended: the signal is on its way
        if os.getppid() != int(launcher) if launcher else os.getpgid(os.getppid()) != os.getpgrp():
            raise KeyboardInterrupt(signal.SIGTERM)
