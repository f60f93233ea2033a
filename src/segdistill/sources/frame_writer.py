"""Frames as rows of flat arrays on disk: allocated at once, then filled in any order by any number of processes.

N frames, H x W stored pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segdistill.sources.frame import Frame, FrameError, FrameSource


def allocate(folder: Path, frames: int, size_px: tuple[int, int]) -> None:
    """Create both arrays of one split. OSError when the disk cannot hold them: now, not after hours of decoding."""
    folder.mkdir()
    for name, shape in (("images", (frames, *size_px, 3)), ("labels", (frames, *size_px))):
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        if not hasattr(os, "posix_fallocate"):  # macOS has none
            continue
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror} ({path.stat().st_size} bytes)", str(path)) from None


def _write_row(stored: np.memmap, row: int, values: np.ndarray) -> None:
    """`stored[row] = values`, written to the file: through the map it would wait for a page fault every 4 KiB."""
    with Path(stored.filename).open("r+b") as file:
        start = stored.offset + row * values.nbytes
        file.seek(start)
        file.write(np.ascontiguousarray(values))
        file.flush()
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write these pages to the disk now, while the next frame is decoded, and not at the sync.
            os.posix_fadvise(file.fileno(), start, values.nbytes, os.POSIX_FADV_DONTNEED)


class Chunk(NamedTuple):
    """Frames whose rows follow one another in the arrays of `split`."""

    split: str
    first_row: int
    frames: list[Frame]


class FrameFacts(NamedTuple):
    """What one frame adds to the index: its checksum and valid pixels per class (C,), or its faults."""

    checksum: str
    pixels: np.ndarray | int
    faults: list[str]


@dataclass(frozen=True)
class FrameWriter:
    """Reads frames and stores them; the part of the work that is handed to other processes."""

    source: FrameSource
    size_px: tuple[int, int] | None  # (H, W) to store; None when no frame is readable
    resize: bool  # else a frame of another size is a fault
    folder: Path | None  # None checks the frames and stores nothing

    def __call__(self, chunk: Chunk) -> list[FrameFacts]:
        if self.folder:
            images, labels = (
                np.load(self.folder / chunk.split / f"{name}.npy", mmap_mode="r") for name in ("images", "labels")
            )
        facts = []
        for row, frame in enumerate(chunk.frames, chunk.first_row):
            try:
                image, classes, checksum = self._fitted(frame)
            except FrameError as error:
                facts.append(FrameFacts("", 0, error.faults))
                continue
            if self.folder:
                _write_row(images, row, image)
                _write_row(labels, row, classes)
            # Pillow counts bytes in C; np.bincount widens them to 64 bits first.
            counts = Image.fromarray(classes).histogram()[: len(self.source.table)]
            facts.append(FrameFacts(checksum, np.array(counts), []))
        return facts

    def _fitted(self, frame: Frame) -> tuple[np.ndarray, np.ndarray, str]:
        """Image, classes and checksum of `frame` at the size to store; raises FrameError."""
        image, classes, checksum = self.source.read(frame)
        if image.shape[:2] == self.size_px:
            return image, classes, checksum
        if not self.resize:
            found, first = list(image.shape[:2]), list(self.size_px)
            sizes = f"size {found}, but the first frame has {first}; data.size_px can resize all"
            raise FrameError([f"{self.source.path_of(frame)}: {sizes}"])
        width_height = self.size_px[::-1]
        # Pillow widens the bilinear filter when it reduces, so that every pixel of the source counts.
        image = np.asarray(Image.fromarray(image).resize(width_height, Image.Resampling.BILINEAR))
        classes = np.asarray(Image.fromarray(classes).resize(width_height, Image.Resampling.NEAREST))
        return image, classes, checksum
