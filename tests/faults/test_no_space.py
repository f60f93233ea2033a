"""No space, or no right to write: one line, nothing lost, and a rerun that succeeds."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from segdistill.base.params import Params
from segdistill.student import distill, finetune
from stage_calls import Done, call_stage
from tiny_city import build_city, save_params, tinier_params

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RUN = "a03-lr01"
# Each stage with its arguments, and the first of its outputs that is larger than the limit it is given.
STAGES = {
    "prepare": ((), "data/prepared", 10_000),
    "teacher_check": ((), "scratch/teacher/", 100_000),
    "teacher_logits": (("--kind", "views"), "data/teacher_logits/views", 10_000),
    "distill": (("--run", RUN), f"scratch/distill/{RUN}/", 100_000),
    "steplr_finetune": (("--run", RUN), f"scratch/finetune/{RUN}/", 100_000),
    "export_onnx": (("--run", RUN), f"models/runs/{RUN}/student.onnx", 100_000),
}


def params() -> Params:
    return tinier_params()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_thread) -> Path:
    """A folder in which every stage up to the export has run."""
    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_params(params())
        build_city(params())
        distill(params(), RUN)
        finetune(params(), RUN)
        assert call_stage(folder, "export_onnx", "--run", RUN).exit_code == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the unfinished trainings' own."""
    files = (path for path in folder.rglob("*") if path.is_file() and "scratch" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_told(call: Done, *words: str) -> None:
    """One error, with all `words`, and no traceback."""
    assert call.exit_code == 1, call.err
    assert "Traceback" not in call.err
    errors = [line for line in call.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, call.err
    assert all(word in errors[0] for word in words), errors[0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_cannot_grow_is_told_and_nothing_is_lost(folder, stage):
    arguments, output, limit_bytes = STAGES[stage]
    before = contents(folder)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    assert_told(call_stage(folder, stage, *arguments, first=limited), output, "File too large; free some space")
    assert contents(folder) == before
    again = call_stage(folder, stage, *arguments)
    assert again.exit_code == 0, again.err
    assert contents(folder) == before, "the same bytes once there is space"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 MB, in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("stage", "free_kb"), [("prepare", 20), ("teacher_logits", 12), ("distill", 200), ("export_onnx", 200)]
)
def test_a_full_disk_is_told_and_a_rerun_succeeds_after_space_is_freed(finished, small_disk, stage, free_kb):
    folder, filler = small_disk / "here", small_disk / "filler"
    arguments, output, _ = STAGES[stage]
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("scratch"))
    before = contents(folder)
    disk = os.statvfs(small_disk)
    filler.write_bytes(b"0" * (disk.f_bavail * disk.f_frsize - free_kb * 1024))
    assert_told(call_stage(folder, stage, *arguments), output, "No space left on device", "free some space")
    assert contents(folder) == before
    filler.unlink()
    again = call_stage(folder, stage, *arguments)
    assert again.exit_code == 0, again.err
    assert contents(folder) == before


def bound_by_modes() -> None:
    """Give up root's right to read and write whatever the modes say (capabilities 1 and 2, see capabilities(7))."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~0b110  # of the effective ones
    assert libc.capset(header, sets) == 0


@pytest.mark.parametrize(
    ("stage", "closed"),
    [
        ("prepare", "data"),
        ("teacher_check", "models"),
        ("teacher_logits", "data/teacher_logits"),
        ("distill", "."),
        ("export_onnx", f"models/runs/{RUN}"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told(folder, stage, closed):
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    (folder / closed).chmod(0o555)
    before = contents(folder)
    call = call_stage(folder, stage, *STAGES[stage][0], first=bound_by_modes)
    (folder / closed).chmod(0o755)
    assert_told(call, "Permission denied")
    assert contents(folder) == before
