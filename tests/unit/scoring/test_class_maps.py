"""Archives of class maps: what was written is read again, and anything else is refused."""

from __future__ import annotations

import re
import zipfile

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.scoring import record
from segdistill.scoring.record import ClassMapArchive, write_archive
from support.hostile_files import RunsCode


@pytest.mark.parametrize("by_columns", [False, True])
def test_written_class_maps_are_read_again(tmp_path, by_columns):
    maps = np.random.default_rng(0).integers(0, 19, (2, 5, 7), np.uint8)
    stored = [np.asfortranarray(classes) if by_columns else classes for classes in maps]
    write_archive(tmp_path / "maps.npz", {3: stored[0], 10: stored[1]})
    archive = ClassMapArchive(tmp_path / "maps.npz")
    assert np.array_equal(archive(3), maps[0])
    assert np.array_equal(archive(10), maps[1])
    assert archive(3).dtype == np.uint8


@pytest.mark.parametrize("content", [None, b"", b"no zip", b"PK\5\6" + bytes(18)[:-1]])
def test_file_that_is_no_archive_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "maps.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"maps\.npz: no "):
        ClassMapArchive(tmp_path / "maps.npz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 7), np.int64), "holds int64 [5, 7]; a class map is uint8 of two dimensions"),
        (np.zeros((5, 7, 3), np.uint8), "holds uint8 [5, 7, 3]"),
        (np.zeros((50, 70), np.uint8), "larger than the 400 bytes"),
    ],
)
def test_array_that_is_no_class_map_is_refused_by_name(tmp_path, monkeypatch, array, message):
    monkeypatch.setattr(record, "MAX_MAP_BYTES", 400 if "larger" in message else 10_000)
    write_archive(tmp_path / "maps.npz", {0: array})
    with pytest.raises(UserError, match=rf"maps\.npz: no readable class map of frame 0 \({re.escape(message)}"):
        ClassMapArchive(tmp_path / "maps.npz")(0)


def test_pickled_arrays_are_refused_and_do_not_run(tmp_path):
    np.savez(tmp_path / "maps.npz", **{"0": np.array([RunsCode(tmp_path / "created")], object)})
    with pytest.raises(UserError, match="holds object"):
        ClassMapArchive(tmp_path / "maps.npz")(0)
    assert not (tmp_path / "created").exists()


def test_missing_or_truncated_map_is_refused_by_name(tmp_path):
    write_archive(tmp_path / "maps.npz", {0: np.zeros((5, 7), np.uint8)})
    with pytest.raises(UserError, match="has no class map of frame 1"):
        ClassMapArchive(tmp_path / "maps.npz")(1)
    with zipfile.ZipFile(tmp_path / "maps.npz") as archive:
        content = archive.read("0.npy")
    with zipfile.ZipFile(tmp_path / "maps.npz", "w") as archive:
        archive.writestr("0.npy", content[:-1])
    with pytest.raises(UserError, match="no readable class map of frame 0"):
        ClassMapArchive(tmp_path / "maps.npz")(0)
