"""What `prepare` writes in shards: the same frames as in one file, and the same bytes of shards that did not change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from segdistill.data import shards
from segdistill.data.prepared import PreparedData
from segdistill.prepare.run import CHUNK_FRAMES, prepare
from support.folder_on_disk import describe, pixels, settings, write_frames, write_image

VAL = tuple(f"v{number:02d}" for number in range(8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of 14 train frames, of which some are held out, and of 8 val frames."""
    describe(tmp_path / "birds")
    write_frames(tmp_path / "birds", tuple(f"t{number:02d}" for number in range(14)), VAL)
    return tmp_path / "birds"


def hashes(out: Path) -> dict[str, str]:
    files = (path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepared(root: Path, out: Path, workers: int = 1) -> dict[str, str]:
    prepare(settings(root), 0, out, workers)
    return hashes(out)


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The files that one of both lacks, or whose bytes differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


# Shards shorter than a chunk of frames, of a length that no chunk divides, and longer than a split.
@pytest.mark.parametrize("frames", [1, 3, CHUNK_FRAMES + 1, 100])
def test_shards_hold_the_frames_of_one_file(root, tmp_path, monkeypatch, frames):
    prepare(settings(root), 0, tmp_path / "whole", 1)
    monkeypatch.setattr(shards, "FRAMES_PER_SHARD", frames)
    prepare(settings(root), 0, tmp_path / "shards", 1)
    index, expected = ((tmp_path / name / "index.json").read_bytes() for name in ("shards", "whole"))
    assert index == expected
    for name in ("train", "holdout", "val"):
        split, one = (getattr(PreparedData.open(tmp_path / out), name) for out in ("shards", "whole"))
        assert len(split.images.shards) == -(-len(split) // frames)
        assert len(one.images.shards) == 1
        assert np.array_equal(split.images, one.images)
        assert np.array_equal(split.labels, one.labels)


def test_bytes_of_shards_do_not_depend_on_workers(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FRAMES_PER_SHARD", 3)
    assert prepared(root, tmp_path / "one") == prepared(root, tmp_path / "two", workers=2)


def test_a_changed_image_changes_its_shard_alone(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FRAMES_PER_SHARD", 2)
    before = prepared(root, tmp_path / "before")
    write_image(root / "images" / "val" / f"{VAL[5]}.png", pixels(99)[0])
    assert changed(before, prepared(root, tmp_path / "after")) == ["index.json", "val/images-00002.npy"]


def test_an_added_frame_changes_its_shard_and_those_after_it(root, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FRAMES_PER_SHARD", 2)
    before = prepared(root, tmp_path / "before")
    for kind, array in zip(("images", "labels"), pixels(99), strict=True):
        write_image(root / kind / "val" / "v05b.png", array)
    found = changed(before, prepared(root, tmp_path / "after"))
    later = [f"val/{kind}-{number:05d}.npy" for kind in ("images", "labels") for number in (3, 4)]
    assert found == ["index.json", *later]
