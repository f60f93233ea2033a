"""Starts the process that shows a training's curve in MLflow and ends it with the training; knows nothing of MLflow."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

END_S = 6.0
MODULE = "segdistill.tracking.live_curves"  # by name: a training does not depend on what shows it
PICTURES = "pictures"  # the folder beside a curve that its training leaves pictures in
EXTRA: tuple[str, ...] = ()  # further arguments, for tests


@contextlib.contextmanager
def followed(run: str, phase: str, curve: Path, enabled: bool) -> Iterator[None]:
    """Show the growing file `curve` of `phase` of `run` while the body runs; no failure of it reaches the body."""
    process = _start(run, phase, curve) if enabled else None
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        if process:
            _end(process, status, f"{run}/{phase}")


def _start(run: str, phase: str, curve: Path) -> subprocess.Popen | None:
    command = [sys.executable, "-m", MODULE, "--run", run, "--phase", phase, "--curve", str(curve), *EXTRA]
    try:
        # In a group of its own: Ctrl-C in a terminal is for the training, and would meet Python while it is starting.
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        print(f"warning: no live curve of {run}: {error}", file=sys.stderr)
        return None


def _end(process: subprocess.Popen, status: str, name: str) -> None:
    with contextlib.suppress(OSError):  # it may have ended by itself
        process.stdin.write(f"{status}\n".encode())
        process.stdin.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        left = "it is on disk, and segdistill track brings it in"
        print(f"warning: MLflow does not have all of the curve of {name} after {END_S:g} s; {left}", file=sys.stderr)
