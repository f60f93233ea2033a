"""Commands of segdistill as processes, in a project of `benchmarks.sweeping`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.sweeping import environment

LIMIT_S = 150


def start_command(command: str, project: Path, *arguments: str) -> subprocess.Popen:
    """Start `segdistill COMMAND ARGUMENTS` in `project`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    whole = [sys.executable, "-m", "segdistill", command, *arguments]
    return subprocess.Popen(whole, cwd=project, env=environment(project), **pipes)


def call_command(command: str, project: Path, *arguments: str) -> tuple[int, str, str]:
    """Run `segdistill COMMAND ARGUMENTS` in `project`; return the exit code, and the texts of stdout and stderr."""
    process = start_command(command, project, *arguments)
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err
