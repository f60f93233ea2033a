"""The built-in city as a source: frames are rendered at any size, not read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from segdistill.formats.classes import ClassTable
from segdistill.prepare import cityscapes
from segdistill.prepare.sources import Frame, FrameData


@dataclass(frozen=True)
class SyntheticFrames:
    """Frames of the built-in city, all of one size (H, W)."""

    seed: int
    counts: dict[str, int]
    frame_size_px: tuple[int, int]
    table: ClassVar[ClassTable] = cityscapes.TABLE
    independent_frames: ClassVar[bool] = True  # frames of one city share its style, and no scene

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        from segdistill.prepare.synthetic import render as synthetic

        frames = []
        for index in range(self.counts[split]):
            city, stem = synthetic.frame_name(split, index)
            frames.append(Frame(split, city, cityscapes.split_stem(stem)[1], stem, index))
        return sorted(frames, key=lambda frame: frame.name), []

    def path_of(self, frame: Frame) -> str:
        return f"synthetic {frame.split} frame {frame.index}"

    def size_px(self, frame: Frame) -> tuple[int, int]:
        return self.frame_size_px

    def read(self, frame: Frame) -> FrameData:
        from segdistill.prepare.synthetic import render as synthetic

        image, label_ids = synthetic.render_frame(self.seed, frame.split, frame.index, self.frame_size_px)
        checksum = hashlib.sha256(image.tobytes() + label_ids.tobytes()).hexdigest()
        return FrameData(image, cityscapes.CODING.classes(label_ids), checksum)

    def suspicions(self, pixels_C: np.ndarray) -> Iterator[str]:
        return iter(())
