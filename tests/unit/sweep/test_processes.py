"""Processes of DVC: what a killed command leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from segdistill.sweep.processes import wait_for_killed


@pytest.mark.skipif(sys.platform != "linux", reason="a parent that does not reap leaves a zombie on Linux")
def test_zombie_of_a_killed_command_is_waited_for(tmp_path, monkeypatch):
    """After `kill -9` of a sweep, its `dvc` are zombies until init reaps them, and DVC calls their files busy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    killed = subprocess.Popen(["sleep", "60"])
    killed.kill()
    while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    info = {"pid": killed.pid, "cmd": "dvc repro"}
    (tmp_path / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {}, "read": {"/data/teacher_logits": [info]}}))
    reaper = threading.Timer(0.5, killed.wait)
    reaper.start()
    wait_for_killed()
    assert not psutil.pid_exists(killed.pid)
    reaper.join()


@pytest.mark.parametrize("content", [None, "", "{}", '{"write": [], "read": {}}', '{"write": {"a": {}}, "read": {}}'])
def test_file_that_dvc_does_not_write_is_left_to_it(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(".dvc/tmp").mkdir(parents=True)
        Path(".dvc/tmp/rwlock").write_text(content)
    wait_for_killed()
    assert [path.read_text() for path in tmp_path.glob(".dvc/tmp/rwlock")] == ([] if content is None else [content])
