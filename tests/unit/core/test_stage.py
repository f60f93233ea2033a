"""A stage ends at a signal, in one line, and with the DVC that started it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAGE = """
import os, sys, time
from pathlib import Path
from segdistill.core.files import atomic_directory
from segdistill.core.stage import stage_process
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
# Starts a command as DVC does, and repeats the first line that its stage prints.
STARTER = """
import os, subprocess, sys
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True, env=os.environ | {"DVC_STAGE": "x"})
print(command.stdout.readline(), flush=True)
command.wait()
"""
# Runs a command in a process group of its own and adopts orphans, as init or a CI runner does.
ADOPTER = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
command = subprocess.Popen(sys.argv[1:], process_group=0)
print(command.pid, flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_stage_in_one_line_and_leaves_no_partial_output(tmp_path, number):
    def as_in_a_terminal() -> None:
        """Tests that run in the background of a script are started with SIGINT ignored, and so would the stage be."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    with subprocess.Popen(command, preexec_fn=as_in_a_terminal, **pipes) as stage:
        assert stage.stdout.readline().startswith("working")
        stage.send_signal(number)
        _, said = stage.communicate(timeout=30)
    assert stage.returncode == 128 + number
    assert said == "error: stopped; dvc repro continues with what is not finished\n"
    assert list(tmp_path.iterdir()) == []


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent")
# As DVC starts the commands of dvc.yaml: through the user's shell, with `exec`.
shells = pytest.mark.parametrize("shell", ["sh", "bash"])
adopters = pytest.mark.parametrize("adopter", [[], [sys.executable, "-c", ADOPTER]], ids=["init", "subreaper"])


@on_linux
@adopters
@shells
@pytest.mark.parametrize("kind", [STAGE, STARTING + STAGE], ids=["working", "starting"])
def test_stage_ends_with_the_dvc_that_started_it(tmp_path, adopter, shell, kind):
    """A stage whose DVC is killed while Python is starting does no work at all."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder = tmp_path / "folder"
    folder.mkdir()
    dvc = [sys.executable, "-c", STARTER, shell, "-c", 'exec "$@"', shell, sys.executable, "-c", kind, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*adopter, *dvc], cwd=tmp_path, start_new_session=True, **pipes) as started:
        dvc_pid = int(started.stdout.readline()) if adopter else started.pid
        stage = int(started.stdout.readline().split()[1])
        os.kill(dvc_pid, signal.SIGKILL)
        (folder / "go").touch()
        wait_for_the_end(stage)
    assert [path.name for path in folder.iterdir()] == ["go"]


@on_linux
def test_stage_without_dvc_outlives_its_parent(tmp_path):
    shell = f'{sys.executable} -c "$0" {tmp_path} & read line'  # ends at once, before its background process
    environment = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    subprocess.run(["sh", "-c", shell, STAGE.replace("60", "0.5")], env=environment, input="\n", text=True, check=False)
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / "half").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
