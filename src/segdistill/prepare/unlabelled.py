"""Further train frames without labels: the images of a folder, from which only students with a teacher learn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segdistill.core.errors import UserError, printable
from segdistill.formats.classes import IGNORE, ClassTable
from segdistill.prepare.file_tree import linked_folders, read_file
from segdistill.prepare.folder_files import OTHER_SUFFIXES
from segdistill.prepare.images import SUFFIXES, decode_image, image_size_px
from segdistill.prepare.sources import Frame, FrameData, FrameSource, describe_folder, name_path

UNLABELLED = "unlabelled"  # Frame.split of these frames; they are stored in the split train


@dataclass(frozen=True)
class WithUnlabelled:
    """A source with further frames: JPEG and PNG files of a folder inside `root`, all of whose pixels are ignored."""

    source: FrameSource
    root: Path
    folder: str

    @classmethod
    def open(cls, source: FrameSource, root: str, folder: str) -> WithUnlabelled:
        """Add the images of the folder `root`/`folder` to a source.

        Raises:
            UserError: there is no such folder.
        """
        found, parts = Path(root).expanduser() / folder, Path(folder).parts
        # Inside root, because DVC looks for changes there.
        if not parts or Path(folder).is_absolute() or ".." in parts or not found.is_dir():
            allowed = f"allowed is a folder of images inside data.root, {root}"
            raise UserError(f"data.unlabelled: '{folder}' {describe_folder(found)}; {allowed}")
        return cls(source, Path(root).expanduser(), folder)

    @property
    def table(self) -> ClassTable:
        return self.source.table

    @property
    def independent_frames(self) -> bool:
        return self.source.independent_frames

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        if split != UNLABELLED:
            return self.source.list_frames(split)
        paths = sorted(path.relative_to(self.root) for path in (self.root / self.folder).rglob("*"))
        paths = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
        links = [f"{path.as_posix()}/file" for path in paths if (self.root / path).is_dir()]
        errors = list(linked_folders(self.root, [f"{self.folder}/file", *links]))
        errors += [
            f"{printable(str(self.root / path))}: images are read from files that end in {' or '.join(SUFFIXES)}"
            for path in paths
            if path.suffix.lower() in OTHER_SUFFIXES
        ]
        files = [path for path in paths if path.suffix.lower() in SUFFIXES and not (self.root / path).is_dir()]
        if not files and not errors:
            errors.append(f"data.unlabelled: {printable(str(self.root / self.folder))} holds no JPEG and no PNG")
        frames = [
            Frame(UNLABELLED, path.parent.as_posix(), "", path.as_posix(), index) for index, path in enumerate(files)
        ]
        return frames, errors

    def path_of(self, frame: Frame) -> str:
        is_mine = frame.split == UNLABELLED
        return printable(str(self.root / frame.name)) if is_mine else self.source.path_of(frame)

    def size_px(self, frame: Frame) -> tuple[int, int]:
        if frame.split != UNLABELLED:
            return self.source.size_px(frame)
        with name_path(self.path_of(frame)):
            return image_size_px(read_file(self.root / frame.name))

    def read(self, frame: Frame) -> FrameData:
        if frame.split != UNLABELLED:
            return self.source.read(frame)
        with name_path(self.path_of(frame)):
            content = read_file(self.root / frame.name)
            pixels = decode_image(content, None, "apply")
        return FrameData(pixels, np.full(pixels.shape[:2], IGNORE, np.uint8), hashlib.sha256(content).hexdigest())

    def suspicions(self, pixels_C: np.ndarray) -> Iterator[str]:
        return self.source.suspicions(pixels_C)
