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
import os, sys, time
from pathlib import Path
from segdistill.files import atomic_directory
from segdistill.stage_process import stage_process
with stage_process():
    with atomic_directory(Path(sys.argv[1]) / "out") as folder:
        (folder / "half").touch()
        print("working", os.getpid(), flush=True)
        time.sleep(60)
"""
# Python starts, until there is a file.
STARTING = """
import os, sys, time
from pathlib import Path
print("starting", os.getpid(), flush=True)
sys.stdout = open(os.devnull, "w")  # who read it is dead by then
while not (Path(sys.argv[1]) / "go").exists():
    time.sleep(0.01)
"""
# Starts a command as DVC does, and says what its stage says.
STARTER = """
import os, subprocess, sys
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True, env=os.environ | {"DVC_STAGE": "x"})
print(command.stdout.readline(), flush=True)
command.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_is_asked_to_stop_says_so_and_leaves_nothing_half(tmp_path, number):
    def as_in_a_terminal() -> None:
        """Tests that run in the background of a script are started with SIGINT ignored, and so would the stage be."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    with subprocess.Popen(command, preexec_fn=as_in_a_terminal, **pipes) as stage:
        assert stage.stdout.readline().startswith("working")
        stage.send_signal(number)
        _, told = stage.communicate(timeout=30)
    assert stage.returncode == 128 + number
    assert told == "error: stopped; dvc repro goes on with what is not finished\n"
    assert list(tmp_path.iterdir()) == []


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that another has ended")
shells = pytest.mark.parametrize("shell", [[], ["sh", "-c", '"$@"; exit', "sh"]], ids=["replaced itself", "stays"])


@on_linux
@shells
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path, shell):
    command = [sys.executable, "-c", STARTER, *shell, sys.executable, "-c", STAGE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as dvc:
        stage = int(dvc.stdout.readline().split()[1])
        dvc.kill()
    wait_for_the_end(stage)
    assert list(tmp_path.iterdir()) == []


@on_linux
def test_a_stage_ends_with_its_dvc_whatever_the_shell_is_called(tmp_path):
    shell, folder = tmp_path / "a-shell-of-ones-own", tmp_path / "folder"
    shell.symlink_to("/bin/sh")
    folder.mkdir()
    in_shell = [str(shell), "-c", '"$@"; exit', "sh", sys.executable, "-c", STAGE, str(folder)]
    command, environment = [sys.executable, "-c", STARTER, *in_shell], os.environ | {"SHELL": str(shell)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as dvc:
        stage = int(dvc.stdout.readline().split()[1])
        dvc.kill()
    wait_for_the_end(stage)
    assert list(folder.iterdir()) == []


@on_linux
@shells
def test_a_stage_whose_dvc_was_killed_while_python_started_does_no_work(tmp_path, shell):
    command = [sys.executable, "-c", STARTER, *shell, sys.executable, "-c", STARTING + STAGE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as dvc:
        stage = int(dvc.stdout.readline().split()[1])
        dvc.kill()
    (tmp_path / "go").touch()
    wait_for_the_end(stage)
    assert [path.name for path in tmp_path.iterdir()] == ["go"]


def wait_for_the_end(stage: int) -> None:
    deadline = time.monotonic() + 30
    while runs(stage) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(stage)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Without a parent that waits for it, an ended process may stay in the table.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
