"""The windows of train frames on which the teacher runs: crop views or whole frames, and their images and labels.

Shapes: B crops, N frames, K views, M windows, H/W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from segdistill.data.arrays import drop_pages
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.transforms import crop
from segdistill.parallel import ranks
from segdistill.params.model import ViewLimitParams

# The frame of each (B,), images uint8 (B, H, W, 3), and labels uint8 (B, H, W).
Crops = tuple[np.ndarray, np.ndarray, np.ndarray]


class Windows(NamedTuple):
    """M windows in frames: frames (M,), flips bool (M,), corners (M, 2) and sizes (M, 2) in pixels."""

    frames: np.ndarray
    flips: np.ndarray
    origins: np.ndarray
    sizes: np.ndarray


def view_windows(spec: ViewSpec, stored: np.ndarray | None = None, mirrored: bool = False) -> Windows:
    """Return the views that are `stored`, bool (N, K), or (N, 2 K) with the `mirrored` ones, or all, in order."""
    if stored is None:
        stored = np.ones((spec.frames, spec.views * (1 + mirrored)), bool)
    frames, views = np.nonzero(stored)
    flips, views = views >= spec.views, views % spec.views
    return Windows(frames, flips, spec.origins()[frames, views], spec.sizes()[frames, views])


def whole_frames(spec: ViewSpec) -> Windows:
    """Return the windows that are the frames, in order."""
    frames, corners = np.arange(spec.frames), np.zeros((spec.frames, 2), np.int64)
    return Windows(frames, np.zeros(spec.frames, bool), corners, corners + spec.frame_px)


def views_drawn_by(spec: ViewSpec, limit: ViewLimitParams) -> np.ndarray:
    """Return the views of `spec` that trainings within `limit` draw with its seed, bool (N, K)."""
    drawn = np.zeros((spec.frames, spec.views), bool)
    for phase, steps in limit.steps.items():
        drawn |= BatchSampler(spec.seed, phase, *drawn.shape, limit.batch_size, 0.0, 0.0).drawn(steps)
    return drawn


def evenly_spaced_views(spec: ViewSpec, views: int) -> np.ndarray:
    """Return `views` of all views, evenly spread, bool (N, K)."""
    chosen = np.zeros(spec.frames * spec.views, bool)
    chosen[np.linspace(0, len(chosen) - 1, views).astype(int)] = True
    return chosen.reshape(spec.frames, spec.views)


def read_crops(
    split: Split, windows: Windows, size_px: tuple[int, int], batch_size: int, shared: bool = False
) -> Iterator[Crops]:
    """Yield images and labels of `windows`, resized to `size_px`; of `shared` ones, the batches of this rank."""
    firsts: Sequence[int] = range(0, len(windows.frames), batch_size)
    for first in ranks.own(firsts) if shared else firsts:
        frames, flips, origins, sizes = (part[first : first + batch_size] for part in windows)
        images = np.empty((len(frames), *size_px, 3), np.uint8)
        labels = np.empty((len(frames), *size_px), np.uint8)
        for source, out in ((split.images, images), (split.labels, labels)):
            crop(source, frames, origins, flips, sizes, out)
            drop_pages(source)
        yield frames, images, labels
