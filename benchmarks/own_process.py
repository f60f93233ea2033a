"""Work that is measured in another process, because the library's settings of this process would change it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection


class OwnProcess:
    """`make(*given)` in a new process that waits between the calls; a call returns when its work is done.

    The process ends with the one that started it. It may start processes.
    """

    def __init__(self, make: Callable[..., Callable[[], None]], *given: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, given))
        self._process.start()
        theirs.close()
        self._wait()

    def __call__(self) -> None:
        self._ours.send(None)
        self._wait()

    def end(self) -> None:
        """End the process."""
        self._ours.close()
        self._process.join()

    def _wait(self) -> None:
        """Wait for the process; EOFError when it failed, with its traceback on stderr."""
        self._ours.recv()


def _serve(calls: Connection, make: Callable[..., Callable[[], None]], given: tuple) -> None:
    work = make(*given)
    try:
        while True:
            calls.send(None)
            calls.recv()
            work()
    except (EOFError, BrokenPipeError):  # no more calls
        return
