"""Inputs are read in a forked process, so that a crash, a hang or a flood of memory is a finding and not the end."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

from segdistill.core.errors import UserError

ACCEPTED, REFUSED = "accepted", "refused"
HEADROOM_BYTES = 2 * 2**30  # of address space, over what the process has before the first input
MOST_GROWTH_MB = 1024  # of memory in use
MOST_CPU_S = 2.0  # of one input; not of the clock, which runs on while others use the machine
HANG_S = 30.0  # of the clock, for what waits instead of computing


class Result(NamedTuple):
    """What became of one input: ACCEPTED, REFUSED or what went wrong; `peak_mb` is of its process so far."""

    number: int
    outcome: str
    cpu_ms: float = 0.0
    peak_mb: float = 0.0

    @property
    def is_failure(self) -> bool:
        return self.outcome not in (ACCEPTED, REFUSED)


Prepare = Callable[[int], Callable[[], object]]


def results(prepare: Prepare, numbers: Sequence[int]) -> Iterator[Result]:
    """Yield the result of `prepare(number)()` for each of `numbers`, in order, from as many processes as crashes need.

    What `prepare` does before is in the same process, and not counted.
    """
    waiting = list(numbers)
    while waiting:
        for result in _of_one_process(prepare, tuple(waiting)):
            waiting.remove(result.number)
            yield result


def outcome_of(read: Callable[[], object]) -> str:
    """Return how one input ends: read, or refused by what `exit_on_user_error` turns into one line, or the error."""
    try:
        read()
    except (UserError, OSError):
        return REFUSED
    except BaseException as error:
        calls = traceback.extract_tb(error.__traceback__)
        ours = [call for call in calls if "segdistill" in Path(call.filename).parts] or calls
        return f"{type(error).__name__} ({str(error)[:200]}) from {Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return ACCEPTED


def _of_one_process(prepare: Prepare, numbers: Sequence[int]) -> Iterator[Result]:
    """Yield results until all is read, or until the process ends before: then the last one says how."""
    receiving, sending = Pipe(duplex=False)
    process = os.fork()
    if process == 0:
        try:
            receiving.close()
            _work(prepare, numbers, sending)
        finally:
            os._exit(1)
    sending.close()
    try:
        for number in numbers:
            if not receiving.poll(HANG_S):
                yield Result(number, f"no end within {HANG_S:g} s")
                return
            try:
                result = Result(*json.loads(receiving.recv_bytes()))
            except EOFError:
                ended, process = _ended_by(process), 0
                yield Result(number, f"ended by signal {ended}")
                return
            yield result
            if result.peak_mb > MOST_GROWTH_MB:
                return
    finally:
        receiving.close()
        if process:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _ended_by(process: int) -> str:
    status = os.waitpid(process, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"none, exit code {status >> 8}"


def _work(prepare: Prepare, numbers: Sequence[int], sending: Connection) -> None:
    """Read in the forked process, and write a line for each input."""
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there themselves
        os.dup2(silent, stream)
    faulthandler.disable()
    limit = _address_space_bytes() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before_mb = _peak_mb()
    for number in numbers:
        read = prepare(number)
        started_s = time.process_time()
        outcome = outcome_of(read)
        cpu_s, growth_mb = time.process_time() - started_s, _peak_mb() - before_mb
        if cpu_s > MOST_CPU_S:
            outcome = f"took {cpu_s:.1f} s of a processor"
        elif growth_mb > MOST_GROWTH_MB:
            outcome = f"memory grew by {growth_mb:.0f} MB"
        sending.send_bytes(json.dumps([number, outcome, 1000 * cpu_s, growth_mb]).encode())
    os._exit(0)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
