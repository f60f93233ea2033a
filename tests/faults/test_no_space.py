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

from segdistill.params.model import Params
from segdistill.student.run import distill, finetune
from support.stage_calls import Done, call_stage
from support.tiny_city import build_city, save_params, tinier_params

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
RUN, CONTROL = "a03-lr01", "vanilla"
NO_SERVER = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # no store that the report would write
# Each stage with its arguments, and the first of its outputs that is larger than the limit it is given.
STAGES = {
    "prepare": ((), "data/prepared", 10_000),
    "teacher_check": ((), "scratch/teacher/", 100_000),
    "teacher_logits": (("--kind", "views"), "scratch/teacher-logits/views/", 10_000),
    "distill": (("--run", RUN), f"scratch/distill/{RUN}/", 100_000),
    "steplr_finetune": (("--run", RUN), f"scratch/finetune/{RUN}/", 100_000),
    "export_onnx": (("--run", RUN), f"models/runs/{RUN}/student.onnx", 100_000),
    "benchmark": ((), "teacher.onnx", 100_000),  # in the folder for temporary files, to be timed
    "report": ((), "metrics/summary.json", 500),
}
MEASURED = "metrics/benchmark.json"  # other times in each run


def params() -> Params:
    runs = {CONTROL: {"alpha": 0.0, "lr": 0.01, "teacher": "none"}, RUN: {"alpha": 0.3, "lr": 0.01, "teacher": "views"}}
    return tinier_params(runs=runs, benchmark={"frames": 1, "warmup_frames": 1})


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_thread) -> Path:
    """A folder in which every stage has run."""
    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_params(params())
        build_city(params())
        for run in params().runs:
            distill(params(), run)
            finetune(params(), run)
            assert call_stage(folder, "export_onnx", "--run", run).exit_code == 0
        for stage in ("benchmark", "report"):
            assert call_stage(folder, stage, **NO_SERVER).exit_code == 0
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "here")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the unfinished trainings' own."""
    files = (path for path in folder.rglob("*") if path.is_file() and "scratch" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_restored(folder: Path, stage: str, before: dict[str, str]) -> None:
    """A rerun succeeds, and its outputs are the same bytes; but for what is measured."""
    again = call_stage(folder, stage, *STAGES[stage][0], **NO_SERVER)
    assert again.exit_code == 0, again.err
    after = contents(folder)
    if stage == "benchmark":
        assert after.pop(MEASURED) != before.pop(MEASURED)
    assert after == before


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

    call = call_stage(folder, stage, *arguments, first=limited, **NO_SERVER)
    assert_told(call, output, "File too large; free some space")
    assert contents(folder) == before
    assert_restored(folder, stage, before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 MB, in memory."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", disk]
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
    assert_restored(folder, stage, before)


def bound_by_modes() -> None:
    """Give up root's right to read and write against the modes of files (capabilities 1 and 2, see capabilities(7))."""
    libc, header, sets = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~0b110  # of the effective ones
    assert libc.capset(header, sets) == 0


@pytest.mark.parametrize(
    ("stage", "closed", "named"),
    [
        ("prepare", "data", "data/prepared"),
        ("teacher_check", "models", "models/teacher"),
        ("teacher_logits", "data/teacher_logits", "data/teacher_logits/views"),
        ("distill", ".", "scratch"),
        ("steplr_finetune", f"metrics/runs/{RUN}", f"metrics/runs/{RUN}/"),
        ("export_onnx", f"models/runs/{RUN}", f"models/runs/{RUN}/student.onnx"),
        ("benchmark", "metrics", MEASURED),
        ("report", "reports", "reports/index.html"),
    ],
)
def test_a_folder_that_cannot_be_written_to_is_told_and_a_rerun_succeeds(folder, stage, closed, named):
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    (folder / closed).chmod(0o555)
    before = contents(folder)
    call = call_stage(folder, stage, *STAGES[stage][0], first=bound_by_modes, **NO_SERVER)
    (folder / closed).chmod(0o755)
    assert_told(call, f"error: {named}", "Permission denied")
    assert contents(folder) == before
    assert_restored(folder, stage, before)
