"""Where on val the class maps of two runs differ, and which of the two is right there.

Shapes: H/W frame in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.core.files import atomic_directory
from segdistill.core.progress import Progress
from segdistill.data.prepared import Split
from segdistill.formats.classes import IGNORE

SHOWN_FRAMES = 3
# Where maps differ, by who is right: first, second, neither, and where there is no truth. Colour-blind readers can
# tell these colours apart.
COLOURS = {"first": (0, 114, 178), "second": (230, 159, 0), "neither": (204, 121, 167), "void": (220, 220, 220)}
_LUMA = (0.299, 0.587, 0.114)

ClassesOf = Callable[[np.ndarray], np.ndarray]


@dataclass
class Difference:
    """Where two runs differ and which is right there, as shares of all pixels of val."""

    first: str
    second: str
    pixels: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLOURS, 0))
    by_frame: list[tuple[str, float]] = field(default_factory=list)

    def add(self, name: str, parts: dict[str, np.ndarray]) -> None:
        """Count frame `name`, of which `parts` are masks bool (H, W) as `split_by_truth` gives them."""
        counts = {part: int(np.count_nonzero(mask_HW)) for part, mask_HW in parts.items()}
        frame_pixels = next(iter(parts.values())).size
        self.pixels += frame_pixels
        for part, count in counts.items():
            self.counts[part] += count
        self.by_frame.append((name, sum(counts.values()) / frame_pixels))

    @property
    def differing(self) -> float:
        return sum(self.counts.values()) / self.pixels

    @property
    def first_right(self) -> float:
        return self.counts["first"] / self.pixels

    @property
    def second_right(self) -> float:
        return self.counts["second"] / self.pixels

    @property
    def neither_right(self) -> float:
        return self.counts["neither"] / self.pixels

    @property
    def frames(self) -> list[tuple[str, float]]:
        """Return the frames on which they differ most, with their shares."""
        return sorted(self.by_frame, key=lambda frame: -frame[1])[:SHOWN_FRAMES]


def split_by_truth(first_HW: np.ndarray, second_HW: np.ndarray, labels_HW: np.ndarray) -> dict[str, np.ndarray]:
    """Return the pixels on which two class maps differ, as masks bool (H, W) by who is right."""
    differ, void = first_HW != second_HW, labels_HW == IGNORE
    first, second = differ & (first_HW == labels_HW), differ & (second_HW == labels_HW)
    return {"first": first, "second": second, "neither": differ & ~(first | second | void), "void": differ & void}


def difference_image(image_HW3: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return the frame in dim grey with the pixels that differ in COLOURS: uint8 (H, W, 3)."""
    grey_HW = (image_HW3 @ np.array(_LUMA) * 0.6).round().astype(np.uint8)
    shown_HW3 = np.repeat(grey_HW[..., None], 3, axis=2)
    for part, mask_HW in parts.items():
        shown_HW3[mask_HW] = COLOURS[part]
    return shown_HW3


def pixel_differences(models: dict[str, ClassesOf], split: Split, out: Path | None = None) -> list[Difference]:
    """Predict every frame of `split` by each model and compare them two by two.

    Args:
        models: by run, frames uint8 (1, H, W, 3) to class maps uint8 (1, H, W).
        out: a new folder for difference images, one folder per pair; it appears whole or not at all.
    """
    if out is None:
        return _compared(models, split, None)
    with atomic_directory(out) as folder:
        return _compared(models, split, folder)


def _compared(models: dict[str, ClassesOf], split: Split, folder: Path | None) -> list[Difference]:
    differences = [Difference(*pair) for pair in combinations(models, 2)]
    with Progress("compare", len(split), unit="frame") as progress:
        for name, image, labels_HW in zip(split.names, split.images, split.labels, strict=True):
            image_HW3 = np.array(image)
            classes = {run: classes_of(image_HW3[None])[0] for run, classes_of in models.items()}
            for pair in differences:
                parts = split_by_truth(classes[pair.first], classes[pair.second], labels_HW)
                pair.add(name, parts)
                if folder is not None:
                    target = folder / f"{pair.first}_{pair.second}" / f"{name}.png"
                    target.parent.mkdir(exist_ok=True)
                    Image.fromarray(difference_image(image_HW3, parts)).save(target)
            progress.advance()
    return differences
