"""One half of Cityscapes, `leftImg8bit/` or `gtFine/`: a folder, or the official zip read in place."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

from segdistill.errors import InputError, raise_together
from segdistill.png_file import MAX_FILE_BYTES


class FolderTree:
    """`leftImg8bit/` or `gtFine/` as a folder; symbolic links are followed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path_of(self, name: str) -> str:
        return str(self.folder / name)

    def files(self, split: str) -> list[str]:
        """Sorted `<split>/<city>/<file>` names."""
        return sorted(path.relative_to(self.folder).as_posix() for path in (self.folder / split).glob("*/*"))

    def read(self, name: str) -> bytes:
        with (self.folder / name).open("rb") as file:
            # Of its own size: memory for the largest file allowed would take longer to get than the file to read.
            return file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)


class ZipTree:
    """`leftImg8bit/` or `gtFine/` inside its official zip, read in place.

    InputError when the file is no zip, or when any member of it would lie outside the archive's own folder.
    """

    def __init__(self, path: Path, top: str):
        self.path, self.top = path, top
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: no readable zip ({error})") from None
        names = (PurePosixPath(name.replace("\\", "/")) for name in self.archive.namelist())
        outside = [name for name in names if name.is_absolute() or ".." in name.parts]
        raise_together((f"{path}: {name}" for name in outside), "zip members with an absolute path or '..' are refused")

    def __reduce__(self):
        return ZipTree, (self.path, self.top)  # an open archive cannot be shared: each process opens its own

    def path_of(self, name: str) -> str:
        return f"{self.path}: {self.top}/{name}"

    def files(self, split: str) -> list[str]:
        """Sorted `<split>/<city>/<file>` names."""
        members = (PurePosixPath(name).parts for name in self.archive.namelist() if not name.endswith("/"))
        return sorted("/".join(parts[1:]) for parts in members if len(parts) == 4 and parts[:2] == (self.top, split))

    def read(self, name: str) -> bytes:
        with self.archive.open(f"{self.top}/{name}") as member:
            return member.read(MAX_FILE_BYTES + 1)
