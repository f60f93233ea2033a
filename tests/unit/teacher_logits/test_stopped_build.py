"""A build of the teacher's logits that was stopped continues at its shard, and ends with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.stage import stage_process
from segdistill.data import shards
from segdistill.data.prepared import PreparedData
from segdistill.data.teacher_cache import stored_grid
from segdistill.params.model import Params
from segdistill.teacher_logits.accuracy import TeacherAccuracy
from segdistill.teacher_logits.build import teacher_logits
from segdistill.teacher_logits.shards import COUNTS
from support.tiny_city import build_city, tinier_params

FRAMES_PER_SHARD = 2
SCRATCH = Path("scratch/teacher-logits/views")
KILL, TERM = -signal.SIGKILL, 128 + signal.SIGTERM  # exit codes
OPTIONS = {
    "float16": {"dtype": "float16"},
    "8 bits and features": {"dtype": "uint8", "feature_channels": 4, "mirrored": True},
    "limited": {"limit_views_to": {"distill_steps": 3, "finetune_steps": 2, "batch_size": 2}},
}


def params_of(option: str) -> Params:
    return tinier_params(teacher_logits={"kinds": ("views",), "batch_size": 3} | OPTIONS[option])


@pytest.fixture(scope="module")
def city(tmp_path_factory, one_thread):
    """A folder in which a cache of each of OPTIONS was built without a break, in `undisturbed/OPTION`."""
    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(shards, "FRAMES_PER_SHARD", FRAMES_PER_SHARD)
        build_city(params_of("float16"))
        for option in OPTIONS:
            teacher_logits(params_of(option), "views")
            for made in ("data/teacher_logits", "metrics/teacher_logits"):
                shutil.move(made, f"undisturbed/{option}/{made}")
    return folder


@pytest.fixture
def here(city, tmp_path, monkeypatch):
    for name in ("data", "models"):
        shutil.copytree(city / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "FRAMES_PER_SHARD", FRAMES_PER_SHARD)


def build(option: str, stop: signal.Signals | None = None) -> tuple[int | None, set[int]]:
    """Run the stage in a process of its own, forked, and stop it in its second shard, for `stop`.

    Return its exit code, and the frames of which it ran the teacher on views.
    """
    log, add = Path("seen.txt"), TeacherAccuracy.add

    def add_and_stop(self, frames, labels, logits) -> None:
        add(self, frames, labels, logits)
        with log.open("a") as stream:
            stream.write("".join(f"{frame}\n" for frame in frames))
        if stop and frames.max() >= FRAMES_PER_SHARD:
            os.kill(os.getpid(), stop)

    def work() -> None:
        TeacherAccuracy.add = add_and_stop
        with stage_process():
            teacher_logits(params_of(option), "views")

    log.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode, {int(line) for line in log.read_text().split()} if log.exists() else set()


def contents(root: Path) -> dict[str, bytes]:
    files = [file for kind in ("data", "metrics") for file in (root / kind / "teacher_logits").rglob("*")]
    return {str(file.relative_to(root)): file.read_bytes() for file in files if file.is_file()}


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("option", OPTIONS)
def test_stopped_build_continues_at_its_shard_with_the_same_bytes(city, here, capfd, option, stop):
    frames = len(PreparedData.open().train)
    assert frames > 2 * FRAMES_PER_SHARD
    code, first = build(option, stop)
    assert code in (KILL, TERM)
    assert set(range(FRAMES_PER_SHARD)) < first
    (folder,) = (entry for entry in SCRATCH.iterdir() if entry.is_dir())
    assert [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] == ["00000"]
    assert any(folder.glob(".00001.*")) == (stop == signal.SIGKILL), "a kill leaves what is not believed"
    assert not Path("data/teacher_logits").exists()

    kept = {file.name: file.stat().st_mtime_ns for file in (folder / "00000").iterdir()}
    code, second = build(option)
    assert (code, min(second)) == (0, FRAMES_PER_SHARD), "views of the first shard were computed again"
    assert f"teacher-logits: continues; 1 of {len(shards.shards_of(frames))} shards are built" in capfd.readouterr().err
    out = Path("data/teacher_logits/views")
    assert all((out / name).stat().st_mtime_ns == time for name, time in kept.items() if name != COUNTS)
    assert contents(Path()) == contents(city / "undisturbed" / option)
    assert [entry.name for entry in SCRATCH.iterdir()] == ["lock"]


def test_build_of_other_settings_starts_anew(city, here):
    build("float16", signal.SIGKILL)
    _, seen = build("8 bits and features")
    assert min(seen) == 0
    assert contents(Path()) == contents(city / "undisturbed" / "8 bits and features")


@pytest.mark.parametrize("name", ["logits-00000.npy", COUNTS])
def test_damaged_shard_is_named_and_built_again_after_it_was_deleted(city, here, capfd, name):
    build("float16", signal.SIGKILL)
    (shard,) = SCRATCH.glob("*/00000")
    (shard / name).write_bytes((shard / name).read_bytes()[:-60])
    assert build("float16")[0] == 1
    assert f"{shard / name}: unreadable" in capfd.readouterr().err
    shutil.rmtree(shard)
    code, seen = build("float16")
    assert (code, min(seen)) == (0, 0)
    assert contents(Path()) == contents(city / "undisturbed" / "float16")


def test_metrics_of_shards_add_up(here):
    """In any order: a shard in the middle may have been deleted by its user."""
    data = PreparedData.open()
    frames, rng = len(data.train), np.random.default_rng(0)
    whole, saved, loaded = (TeacherAccuracy(data, 4) for _ in range(3))
    parts = shards.shards_of(frames)
    for part in parts:
        labels = np.asarray(data.train.labels[part.start : part.stop])
        grid = stored_grid(labels.shape[1:], 4)
        logits = rng.standard_normal((len(part), *grid, len(data.table)), np.float32)
        for accuracy in (whole, saved):
            accuracy.add(np.array(part), labels, logits)
        saved.save_shard(Path(f"{part.start}.npz"), part)
    for part in reversed(parts):
        loaded.load_shard(Path(f"{part.start}.npz"), part)
    assert whole.on_views.counts.equal(loaded.on_views.counts)
    for name in ("crops_N", "cells_N", "hits_N", "sure_N", "confidence_N"):
        assert np.array_equal(getattr(whole, name), getattr(loaded, name))
    assert whole.crops_N.tolist() == [1] * frames
