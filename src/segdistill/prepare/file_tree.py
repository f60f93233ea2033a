"""One half of Cityscapes, `leftImg8bit/` or `gtFine/`: a folder, or the official zip read in place."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from segdistill.core.errors import UserError, printable, raise_all
from segdistill.prepare.images import MAX_FILE_BYTES

# PNGs are compressed already, so that a zip makes photographs no smaller and label maps by about a quarter. Label maps
# saved without compression come to about 200:1; what is made to burst open, to 1000:1, the most that deflate can.
# Below a MiB nothing bursts, and the PNG of a single colour packs well a second time.
MAX_RATIO, SMALL_BYTES = 500, 2**20


class FolderTree:
    """`leftImg8bit/` or `gtFine/` as a folder; symbolic links are followed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path_of(self, name: str) -> str:
        return printable(str(self.folder / name))

    def files(self, split: str) -> list[str]:
        """Sorted `<split>/<city>/<file>` names.

        Raises:
            UserError: a link leads nowhere, or round in a circle; what lies behind it would be missing unnoticed.
        """
        folder = self.folder / split
        cities = sorted(folder.iterdir()) if _is_there(folder) else []
        faults = [f"{printable(str(city))}: a link that leads nowhere" for city in cities if not city.exists()]
        raise_all(faults, f"{self.path_of(split)} cannot be listed")
        files = (file for city in cities if city.is_dir() for file in city.iterdir())
        return sorted(file.relative_to(self.folder).as_posix() for file in files)

    def read(self, name: str) -> bytes:
        with open(self.folder / name, "rb", opener=_without_waiting) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UserError("no file, but a pipe or a device")
            # Of its own size: memory for the largest file allowed would take longer to get than the file to read.
            return file.read(min(facts.st_size, MAX_FILE_BYTES) + 1)


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a named pipe would wait for who writes into it, for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _is_there(folder: Path) -> bool:
    """Whether `folder` is there; UserError where a link of that name leads nowhere."""
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{printable(str(folder))}: a link that leads nowhere")
    return folder.is_dir()


class ZipTree:
    """`leftImg8bit/` or `gtFine/` inside its official zip, read in place.

    UserError when the file is no zip, when any member of it would lie outside the archive's own folder, when two bear
    one name, or when it would burst open to more than a zip of PNGs can hold.
    """

    def __init__(self, path: Path, top: str):
        self.path, self.top = path, top
        try:
            self.archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory of members surfaces as nearly any type
            raise UserError(f"{path}: no readable zip ({error})") from None
        members = self.archive.infolist()
        outside = (f"{path}: {printable(member.filename)}" for member in members if _lies_outside(member))
        raise_all(outside, "zip members with an absolute path or '..' are refused")
        doubled = [name for name, times in Counter(self.archive.namelist()).items() if times > 1]
        raise_all(
            (f"{path}: {printable(name)}" for name in doubled), "zips with several members of one name are refused"
        )
        raise_all(_bombs(path, members), "zips that burst open are refused")

    def __reduce__(self):
        return ZipTree, (self.path, self.top)  # an open archive cannot be shared: each process opens its own

    def path_of(self, name: str) -> str:
        return printable(f"{self.path}: {self.top}/{name}")

    def files(self, split: str) -> list[str]:
        """Sorted `<split>/<city>/<file>` names."""
        members = (PurePosixPath(name).parts for name in self.archive.namelist() if not name.endswith("/"))
        return sorted("/".join(parts[1:]) for parts in members if len(parts) == 4 and parts[:2] == (self.top, split))

    def read(self, name: str) -> bytes:
        with self.archive.open(f"{self.top}/{name}") as member:
            return member.read(MAX_FILE_BYTES + 1)


def _lies_outside(member: zipfile.ZipInfo) -> bool:
    name = PurePosixPath(member.filename.replace("\\", "/"))
    return name.is_absolute() or ".." in name.parts


def _bombs(path: Path, members: list[zipfile.ZipInfo]) -> Iterator[str]:
    """What is absurd about the sizes that the archive states; zipfile reads no more of a member than is stated."""
    for member in members:
        allowed = min(max(MAX_RATIO * member.compress_size, SMALL_BYTES), MAX_FILE_BYTES)
        if member.file_size > allowed:
            packed = f"{member.file_size} bytes packed into {member.compress_size}"
            yield f"{path}: {printable(member.filename)}: {packed}; allowed are {allowed}"
    # Members that share their packed bytes, or very many small ones, are each as they should be.
    total, archive_bytes = sum(member.file_size for member in members), path.stat().st_size
    if total > MAX_RATIO * archive_bytes:
        yield f"{path}: {total} bytes packed into {archive_bytes}; allowed are {MAX_RATIO * archive_bytes}"
