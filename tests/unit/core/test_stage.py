"""A stage ends when it is asked to, in one line, and with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdistill.core.stage import stage_process

STAGE = """
import os, sys, time
from pathlib import Path
from segdistill.base.files import atomic_directory
from segdistill.base.stage_process import stage_process
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
import json, os, subprocess, sys
os.makedirs(".dvc/tmp")
with open(".dvc/tmp/rwlock", "w") as lock:
    json.dump({"write": {"/x/out": {"pid": os.getpid(), "cmd": "dvc repro"}}}, lock)
command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True, env=os.environ | {"DVC_STAGE": "x"})
print(command.stdout.readline(), flush=True)
command.wait()
"""
# Runs a command and takes the children of its dead, as the first process of a container or a CI system's runner does.
ADOPTER = """
import ctypes, os, subprocess, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
command = subprocess.Popen(sys.argv[1:])
print(command.pid, flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
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
adopters = pytest.mark.parametrize("adopter", [[], [sys.executable, "-c", ADOPTER]], ids=["init", "another"])


@on_linux
@adopters
@shells
@pytest.mark.parametrize("kind", [STAGE, STARTING + STAGE], ids=["working", "starting"])
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path, adopter, shell, kind):
    """A stage whose DVC is killed while Python is starting does no work at all."""
    folder = tmp_path / "folder"
    folder.mkdir()
    dvc = [sys.executable, "-c", STARTER, *shell, sys.executable, "-c", kind, str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*adopter, *dvc], cwd=tmp_path, **pipes) as started:
        dvc_pid = int(started.stdout.readline()) if adopter else started.pid
        stage = int(started.stdout.readline().split()[1])
        os.kill(dvc_pid, signal.SIGKILL)
        (folder / "go").touch()
        wait_for_the_end(stage)
    assert [path.name for path in folder.iterdir()] == ["go"]


@on_linux
def test_a_stage_run_by_hand_in_a_stages_environment_is_left_alone(tmp_path):
    """DVC writes down which of its processes run; without that file nothing is known, and nothing is stopped."""
    command = [sys.executable, "-c", STAGE.replace("60", "1"), str(tmp_path)]
    environment = os.environ | {"DVC_STAGE": "x"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "half").exists()


@on_linux
@pytest.mark.usefixtures("handlers_of_before")
def test_a_lock_file_that_another_dvc_is_writing_is_read_again(tmp_path, monkeypatch, capsys):
    lock = tmp_path / ".dvc/tmp/rwlock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")
    not_ours = '{"write": {"/x/out": {"pid": 4194305, "cmd": "dvc repro"}}}'  # a number above the highest there can be
    monkeypatch.setattr("segdistill.core.stage.time.sleep", lambda seconds: lock.write_text(not_ours))
    monkeypatch.setenv("DVC_STAGE", "x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended, stage_process():
        pytest.fail("it went to work")
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "error: stopped; dvc repro goes on with what is not finished\n"


@pytest.fixture
def handlers_of_before():
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


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
