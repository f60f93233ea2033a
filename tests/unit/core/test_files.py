"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segdistill.core.files import atomic_directory, atomic_file, copy_whole, read_json, write_json, write_text


class BrokenError(Exception):
    """An error while an output is written."""


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_appears_only_when_whole(tmp_path):
    with atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "new"


def test_whole_file_leaves_no_temporary_file(tmp_path):
    write_text(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


def test_failed_file_leaves_nothing(tmp_path):
    with pytest.raises(BrokenError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise BrokenError
    assert names(tmp_path) == []


def test_failed_file_keeps_the_old_one(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(BrokenError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise BrokenError
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_file_that_was_not_written_is_an_error(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_parent_folders_are_made(tmp_path):
    write_text(tmp_path / "b" / "c" / "a", "é")
    assert (tmp_path / "b" / "c" / "a").read_bytes() == "é".encode()


def test_folder_appears_only_when_whole(tmp_path):
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "a").write_text("new")
        assert not (tmp_path / "d").exists()
    assert names(tmp_path) == ["d"]
    assert (tmp_path / "d" / "a").read_text() == "new"


def test_new_folder_replaces_the_old_one(tmp_path):
    for name in ("a", "b"):
        with atomic_directory(tmp_path / "d") as temporary:
            (temporary / name).write_text(name)
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["b"]


def test_old_folder_is_kept_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with atomic_directory(tmp_path / "d"):
        assert names(tmp_path / "d") == ["old"]


def test_failed_folder_keeps_the_old_one(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    with pytest.raises(BrokenError), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "half").touch()
        raise BrokenError
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["old"]


@pytest.mark.parametrize("renames_before", [0, 1])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, PermissionError])
def test_interrupted_replacement_keeps_the_old_folder(tmp_path, monkeypatch, interruption, renames_before):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").touch()
    rename, done = Path.rename, []

    def interrupted(path: Path, target: Path) -> None:
        if len(done) == renames_before:
            monkeypatch.undo()
            raise interruption
        done.append(rename(path, target))

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(interruption), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["old"]


def test_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(BrokenError), atomic_directory(tmp_path / "d") as temporary:
        (temporary / "half").touch()
        raise BrokenError
    assert names(tmp_path) == []


def dead_pid() -> int:
    """Return the id of a process that has just ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    return ended.pid


def test_partial_outputs_of_killed_processes_are_removed(tmp_path):
    pid = dead_pid()
    (tmp_path / f".d.{pid}.part").mkdir()
    (tmp_path / f".d.{pid}.part" / "half").touch()
    (tmp_path / f".d.{pid}.old").mkdir()
    (tmp_path / "d").mkdir()
    with atomic_directory(tmp_path / "d") as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == ["d"]
    (tmp_path / f".a.{pid}.part").touch()
    write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == ["a", "d"]


def test_partial_outputs_of_running_processes_are_kept(tmp_path):
    for name in (f".a.{os.getppid()}.part", ".a.b.part", f".b.{dead_pid()}.part", f".a.{dead_pid()}.txt"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    write_text(tmp_path / "a", "whole")
    assert names(tmp_path) == sorted([*before, "a"])


def test_folder_whose_replacement_was_killed_is_restored(tmp_path):
    earlier = tmp_path / f".d.{dead_pid()}.old"
    earlier.mkdir()
    (earlier / "kept").touch()
    with pytest.raises(BrokenError), atomic_directory(tmp_path / "d"):
        raise BrokenError
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / "d") == ["kept"]


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
def test_full_disk_names_the_output(tmp_path, atomic):
    with pytest.raises(OSError, match="No space left") as error, atomic(tmp_path / "a"):
        full_disk()
    assert error.value.filename == str(tmp_path / "a")
    assert names(tmp_path) == []


def test_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error, atomic_file(tmp_path / "a"):
        (tmp_path / "b").read_bytes()
    assert error.value.filename == str(tmp_path / "b")


def test_json_round_trip(tmp_path):
    value = {"mean_iou": 0.1 + 0.2, "class_iou": {"road": None}, "näme": [1, 2]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_refused_and_keeps_the_old_file(tmp_path, value):
    write_json(tmp_path / "a.json", {"mean_iou": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"mean_iou": value})
    assert read_json(tmp_path / "a.json") == {"mean_iou": 0.5}
    assert names(tmp_path) == ["a.json"]


def test_copy_is_whole_or_not_there(tmp_path):
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "folder/inner/file").write_text("content")
    copy_whole(tmp_path / "folder", tmp_path / "new/copy")
    assert (tmp_path / "new/copy/inner/file").read_text() == "content"
    (tmp_path / "folder/lost").symlink_to(tmp_path / "nowhere")
    for missing in ("folder", "none"):
        with pytest.raises(FileNotFoundError, match="lost|none"):
            copy_whole(tmp_path / missing, tmp_path / "failed")
    assert [path.name for path in tmp_path.iterdir() if "failed" in path.name] == []
