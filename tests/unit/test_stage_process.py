"""A stage ends when it is asked to, in one line, and with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGE = """
import sys, time
from pathlib import Path
from segdistill.files import atomic_directory
from segdistill.stage_process import stage_process
with stage_process():
    with atomic_directory(Path(sys.argv[1]) / "out") as folder:
        (folder / "half").touch()
        print("working", flush=True)
        time.sleep(60)
"""
# Starts the stage as DVC does, and says its number.
STARTER = """
import os, subprocess, sys
command, environment = [sys.executable, *sys.argv[1:]], os.environ | {"DVC_STAGE": "x"}
stage = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
stage.stdout.readline()
print(stage.pid, flush=True)
stage.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_asked_to_stop_says_so_and_leaves_nothing_half(tmp_path, number):
    def as_in_a_terminal() -> None:
        """Tests that run in the background of a script are started with SIGINT ignored, and so would the stage be."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    with subprocess.Popen(command, preexec_fn=as_in_a_terminal, **pipes) as stage:
        assert stage.stdout.readline() == "working\n"
        stage.send_signal(number)
        _, told = stage.communicate(timeout=30)
    assert stage.returncode == 128 + number
    assert told == "error: stopped; dvc repro goes on with what is not finished\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path):
    command = [sys.executable, "-c", STARTER, "-c", STAGE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as dvc:
        stage = int(dvc.stdout.readline())
        dvc.kill()
    deadline = time.monotonic() + 30
    while runs(stage) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(stage)
    assert list(tmp_path.iterdir()) == []


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Without a parent that waits for it, an ended process may stay in the table.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
