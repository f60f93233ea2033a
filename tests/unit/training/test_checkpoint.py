"""Checkpoints of unfinished trainings: held by one process, whole or absent, removed when params drop the run."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.scratch import LOCK
from segdistill.training.checkpoint import Checkpointer, clear_removed
from support.tiny_city import tinier_params

JOB = "distill/tiny"
HOLDER = """
import fcntl, sys
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path):
    """Another process holds the lock of a job's folder; closing what is yielded ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(folder / LOCK)]
    # Leaving closes what it reads, which ends it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        yield other.stdin


def test_saved_state_is_loaded(tmp_path):
    with Checkpointer(JOB, "key", tmp_path) as checkpointer:
        assert checkpointer.load() is None
        checkpointer.save({"step": 3, "net": {"w": torch.arange(4.0)}})
    with Checkpointer(JOB, "key", tmp_path) as checkpointer:
        state = checkpointer.load()
    assert state["step"] == 3
    assert torch.equal(state["net"]["w"], torch.arange(4.0))


def test_cleared_state_is_gone(tmp_path):
    with Checkpointer(JOB, "key", tmp_path) as checkpointer:
        checkpointer.save({"step": 1})
        checkpointer.clear()
        assert checkpointer.load() is None


def test_process_killed_while_saving_leaves_the_earlier_state(tmp_path, capsys):
    with Checkpointer(JOB, "key", tmp_path) as checkpointer:
        checkpointer.save({"step": 1})
        child = os.fork()
        if child == 0:
            try:
                # The kernel kills a process that writes beyond the limit, with what came before it on disk.
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
                checkpointer.save({"step": 2, "net": torch.zeros(10_000)})
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGXFSZ
        assert checkpointer.load() == {"step": 1}
        assert capsys.readouterr().err == ""
        checkpointer.save({"step": 3})
        assert [path.name for path in checkpointer.folder.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"no state"])
def test_damaged_state_is_reported_and_counts_as_none(tmp_path, capsys, damage):
    with Checkpointer(JOB, "key", tmp_path) as checkpointer:
        checkpointer.save({"step": 1})
        file = checkpointer.folder / "state.pt"
        file.write_bytes(damage(file.read_bytes()))
        assert checkpointer.load() is None
    message = capsys.readouterr().err
    assert message.startswith(f"warning: {file}: unreadable")
    assert message.endswith("distill/tiny starts from its first step\n")


def test_job_that_another_process_trains_is_refused(tmp_path):
    with (
        held_elsewhere(tmp_path / JOB),
        pytest.raises(UserError, match="another process works on distill/tiny"),
        Checkpointer(JOB, "key", tmp_path, wait_s=0.2),
    ):
        pass


def test_job_waits_until_the_other_process_ends(tmp_path, capsys):
    with held_elsewhere(tmp_path / JOB) as other:
        threading.Timer(0.3, other.close).start()
        with Checkpointer(JOB, "key", tmp_path, wait_s=30) as checkpointer:
            assert checkpointer.folder.is_dir()
    assert capsys.readouterr().err == "distill/tiny: waits for another process that works on it\n"


def save(root: Path, job: str) -> Path:
    with Checkpointer(job, "key", root) as checkpointer:
        checkpointer.save({"step": 1})
    return checkpointer.folder


RUN = {"alpha": 0.5, "lr": 0.01, "teacher": "views"}
CHANGES = {
    "nothing": ({}, set()),
    "a run removed": ({"runs": {"a": RUN}}, {"distill/b", "finetune/b"}),
    "a run that is not finetuned": ({"runs": {"a": RUN | {"finetune": {"steps": 0}}, "b": RUN}}, {"finetune/a"}),
    "a teacher that is given": ({"teacher": {"checkpoint": "checkpoints/a.pth"}}, {"teacher"}),
}


@pytest.mark.parametrize(("changed", "gone"), CHANGES.values(), ids=CHANGES)
def test_checkpoints_of_removed_trainings_are_cleared(tmp_path, changed, gone):
    params = tinier_params(**({"runs": {"a": RUN, "b": RUN}} | changed))
    jobs = {f"{phase}/{run}" for phase in ("distill", "finetune") for run in "ab"} | {"teacher"}
    folders = {job: save(tmp_path, job) for job in jobs}
    clear_removed(params, tmp_path)
    assert {job for job, folder in folders.items() if not folder.exists()} == gone
    assert not any((tmp_path / job).exists() for job in gone)


def test_logits_of_kinds_that_are_no_longer_built_are_cleared(tmp_path):
    folders = {kind: save(tmp_path, f"teacher-logits/{kind}") for kind in ("views", "frame")}
    clear_removed(tinier_params(teacher_logits={"kinds": ("views",)}), tmp_path)
    assert (folders["views"].exists(), folders["frame"].exists()) == (True, False)


def test_checkpoints_of_a_running_training_stay(tmp_path):
    folder = save(tmp_path, "distill/removed")
    with held_elsewhere(folder.parent):
        clear_removed(tinier_params(), tmp_path)
        assert folder.exists()


def test_clearing_a_missing_folder_does_nothing(tmp_path):
    clear_removed(tinier_params(), tmp_path / "none")
    assert not (tmp_path / "none").exists()
