"""One half of Cityscapes, `leftImg8bit/` or `gtFine/`: a folder, or the official zip read in place."""

from __future__ import annotations

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from segdistill.core.errors import UserError, printable, raise_all
from segdistill.prepare.images import MAX_FILE_BYTES

# PNGs are compressed already: a zip makes photographs no smaller, and label maps by about a quarter. Label maps saved
# without compression reach about 200:1, a zip bomb 1000:1, the most that deflate can. Members below a MiB are no
# danger, and the PNG of a single colour is compressed well a second time.
MAX_RATIO, SMALL_BYTES = 500, 2**20
_ENCRYPTED = 1  # the bit in the flags of a member
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}


def linked_folders(root: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield an error for each folder below `root`, on the way to one of its files `names`, that is a symbolic link.

    DVC hashes a linked file by its content, but does not look into a linked folder: what changes there reruns nothing.
    """
    folders = {folder for name in names for folder in PurePosixPath(name).parents}
    for folder in sorted(root / folder for folder in folders if folder.parts):
        if folder.is_symlink():
            link, target = printable(str(folder)), printable(str(folder.resolve()))
            yield (
                f"{link}: a link to a folder, in which DVC sees no changes; set data.root to a folder without such "
                f"links, or link the files instead: rm {link} && cp -rs {target} {link}"
            )


def read_file(path: Path) -> bytes:
    """Return the content of `path`, up to a byte more than MAX_FILE_BYTES; raise a UserError for a pipe or a device."""
    # O_NONBLOCK: opening a named pipe without a writer would wait for ever.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise UserError("no file, but a pipe or a device")
        # Of the file's own size: allocating memory for the largest allowed file takes longer than reading a small one.
        return file.read(min(facts.st_size, MAX_FILE_BYTES) + 1)


class FolderTree:
    """`leftImg8bit/` or `gtFine/` as a folder. Files may be symbolic links, folders may not."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path_of(self, name: str) -> str:
        return printable(str(self.folder / name))

    def files(self, split: str) -> tuple[list[str], list[str]]:
        """Return sorted `<split>/<city>/<file>` names, and an error for each link to a folder or to nowhere."""
        folder = self.folder / split
        entries = [folder, *sorted(folder.iterdir())] if folder.is_dir() else [folder]
        dead = [entry for entry in entries if entry.is_symlink() and not entry.exists()]
        errors = [f"{printable(str(entry))}: a link that leads nowhere" for entry in dead]
        cities = [entry.relative_to(self.folder.parent).as_posix() for entry in entries if entry.is_dir()]
        errors += linked_folders(self.folder.parent, [f"{city}/file" for city in cities])
        files = (file for city in entries[1:] if city.is_dir() for file in city.iterdir())
        return sorted(file.relative_to(self.folder).as_posix() for file in files), errors

    def example(self, split: str) -> str | None:
        """Return one file where the files of `split` should be, or elsewhere when neither split is there."""
        splits_are_there = any((self.folder / name).is_dir() for name in ("train", "val"))
        folder = self.folder / split if splits_are_there else self.folder
        return next((str(path) for path in folder.rglob("*") if path.is_file()), None)

    def read(self, name: str) -> bytes:
        return read_file(self.folder / name)


class ZipTree:
    """`leftImg8bit/` or `gtFine/` inside its official zip, read in place.

    Raises:
        UserError: the file is no zip, a member would be outside the archive's own folder, two members have one name,
            zipfile cannot unpack them, or it would decompress to more than a zip of PNGs can hold.
    """

    def __init__(self, path: Path, top: str):
        self.path, self.top = path, top
        try:
            self.archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged directory of members makes zipfile raise nearly any type
            raise UserError(f"{path}: no readable zip ({error})") from None
        members = self.archive.infolist()
        posix = {member.filename: PurePosixPath(member.filename.replace("\\", "/")) for member in members}
        outside = [name for name, inside in posix.items() if inside.is_absolute() or ".." in inside.parts]
        raise_all(
            (f"{path}: {printable(name)}" for name in outside), "zip members with an absolute path or '..' are refused"
        )
        # Some programs write ./leftImg8bit/..., which is the same place.
        names = [(PurePosixPath(name).as_posix(), name) for name in self.archive.namelist() if not name.endswith("/")]
        self._members = dict(names)
        doubled = [name for name, times in Counter(name for name, _ in names).items() if times > 1]
        raise_all(
            (f"{path}: {printable(name)}" for name in doubled), "zips with several members of one name are refused"
        )
        if any(member.flag_bits & _ENCRYPTED for member in members):
            raise UserError(f"{path}: has encrypted members; allowed are zips without a password")
        methods = sorted({member.compress_type for member in members} - _METHODS)
        if methods:
            # Windows packs large files by method 9, Deflate64.
            found = " and ".join("Deflate64" if method == 9 else f"method {method}" for method in methods)
            raise UserError(f"{path}: compressed by {found}, which Python does not read; pack it again with Deflate")
        bombs = []
        for member in members:  # zipfile reads no more of a member than the archive states
            allowed = min(max(MAX_RATIO * member.compress_size, SMALL_BYTES), MAX_FILE_BYTES)
            if member.file_size > allowed:
                packed = f"{member.file_size} bytes packed into {member.compress_size}"
                bombs.append(f"{path}: {printable(member.filename)}: {packed}; allowed are {allowed}")
        # Members that share their packed bytes, or very many small ones, are each within the bound.
        total, archive_bytes = sum(member.file_size for member in members), path.stat().st_size
        if total > MAX_RATIO * archive_bytes:
            bombs.append(f"{path}: {total} bytes packed into {archive_bytes}; allowed are {MAX_RATIO * archive_bytes}")
        raise_all(bombs, "zip bombs are refused")

    def __reduce__(self):
        return ZipTree, (self.path, self.top)  # an open archive cannot be shared: each process opens its own

    def path_of(self, name: str) -> str:
        return printable(f"{self.path}: {self.top}/{name}")

    def files(self, split: str) -> tuple[list[str], list[str]]:
        """Return sorted `<split>/<city>/<file>` names, and no errors."""
        members = (PurePosixPath(name).parts for name in self._members)
        names = ("/".join(parts[1:]) for parts in members if len(parts) == 4 and parts[:2] == (self.top, split))
        return sorted(names), []

    def example(self, split: str) -> str | None:
        """Return one member where those of `split` should be, or elsewhere when the top folder is another one."""
        files = list(self._members)
        within = [name for name in files if name.startswith(f"{self.top}/")] or files
        within = [name for name in within if name.startswith(f"{self.top}/{split}/")] if within is not files else files
        return next((printable(name) for name in within), None)

    def read(self, name: str) -> bytes:
        with self.archive.open(self._members[f"{self.top}/{name}"]) as member:
            return member.read(MAX_FILE_BYTES + 1)
