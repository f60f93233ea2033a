"""A stage script run as a user runs it, in a fork of the test's process: nothing is imported again."""

from __future__ import annotations

import io
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

STAGES = Path(__file__).resolve().parents[1] / "stages"


class Call(NamedTuple):
    """How a stage ended: its exit code (negative: the signal that ended it), and what it printed."""

    code: int
    out: str
    err: str


def call_stage(folder: Path, script: str, *arguments: str, first: Callable[[], object] = lambda: None) -> Call:
    """Run `stages/SCRIPT.py ARGUMENTS` in `folder`; `first` is done in the new process before it starts.

    The calling process must have run torch on one thread only: a fork has no others, and would wait for them.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            _become(folder, script, arguments, first, out.fileno(), err.fileno())
        _, status = os.waitpid(pid, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
    return Call(os.waitstatus_to_exitcode(status), *texts)


def _become(folder: Path, script: str, arguments: tuple[str, ...], first: Callable, out: int, err: int) -> None:
    """Never returns: the fork is the stage, and ends with it."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w"), line_buffering=True) for number in (1, 2))
        os.chdir(folder)
        sys.argv = [str(STAGES / f"{script}.py"), *arguments]
        first()
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001 - what the interpreter would print
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
