"""Outputs that appear whole or not at all: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segdistill.core.errors import UserError


@contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Let an OSError of the body name `path`: a full disk names no file, and temporary names mean nothing to users."""
    try:
        yield
    except OSError as error:
        # Users know `.name.123.part/train/a.npy` as `name/train/a.npy`.
        parts = Path(os.fsdecode(error.filename)).parts if error.filename is not None else ()
        inside = [number for number, part in enumerate(parts) if part.startswith(f".{path.name}.")]
        if inside or not parts:
            error.filename, error.filename2 = str(path.joinpath(*parts[inside[0] + 1 :] if inside else ())), None
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success sync it and rename it to `path`, else remove it.

    Raises:
        OSError: the disk is full, the folder cannot be written to; it names `path`, which is as it was.
    """
    path = Path(path)
    with name_path_in_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; on success sync all of it and rename it to `path`.

    An earlier folder of that name is kept until the new one is whole.

    Raises:
        OSError: the disk is full, the folder cannot be written to; it names `path`, which is as it was.
    """
    path = Path(path)
    with name_path_in_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_abandoned(path)
        temporary, replaced = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("part", "old"))
        temporary.mkdir()
        try:
            yield temporary
            for written in (temporary, *temporary.rglob("*")):
                _sync(written)
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
            _sync(path.parent)
        finally:
            # First, as a request to stop may come between the two renames, and another one here.
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def _clear_abandoned(path: Path) -> None:
    """Remove partial outputs that killed processes left of `path`: they may be as large as the output itself."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        *_, pid, kind = left.name.split(".")
        if kind not in ("part", "old") or not pid.isdigit() or (_runs(int(pid)) and int(pid) != os.getpid()):
            continue
        if kind == "old" and not path.exists():
            left.rename(path)  # killed between the two renames
        elif left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that is in it, atomically.

    A copy may be written to, where `source` may be a read-only link into DVC's cache.
    """
    if source.is_dir():
        with atomic_directory(target) as temporary:
            for path in sorted(source.rglob("*")):
                copy = temporary / path.relative_to(source)
                if path.is_dir():
                    copy.mkdir()
                else:
                    shutil.copyfile(path, copy)
    else:
        with atomic_file(target) as temporary:
            shutil.copyfile(source, temporary)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, atomically. NaN is not JSON: undefined metrics are None."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Return the JSON object in a file.

    Raises:
        UserError: the file holds anything else.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no readable JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; allowed is a JSON object")
    return value
