"""Predict a frame in overlapping tiles, to bound the memory.

Near the border of a tile, a network sees less around a pixel than in the whole frame. So where two tiles overlap, each
keeps the half nearer to its own middle. Averaging logits over the overlap would mix the tile that saw less into the one
that saw more, and would hold a float per class and pixel in memory.

Shapes: H/W frame in pixels, h/w tile in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np


class Tiling(NamedTuple):
    """The (height, width) of a tile, and the least overlap of neighbours."""

    tile_px: tuple[int, int]
    overlap_px: int


class Span(NamedTuple):
    """A tile along one axis: the pixels of the frame that it reads, and those of them that it keeps."""

    read: slice
    kept: slice

    @property
    def kept_in_tile(self) -> slice:
        """Return `kept`, counted from the start of the tile."""
        return slice(self.kept.start - self.read.start, self.kept.stop - self.read.start)


def spans(length_px: int, tile_px: int, overlap_px: int) -> list[Span]:
    """Return tiles of one length along an axis; the last ends with the frame, so it may overlap more."""
    if length_px <= tile_px:
        return [Span(slice(0, length_px), slice(0, length_px))]
    last = length_px - tile_px
    starts = [*range(0, last, tile_px - overlap_px), last]
    middles = [(start + tile_px + following) // 2 for start, following in pairwise(starts)]
    edges = pairwise([0, *middles, length_px])
    return [Span(slice(start, start + tile_px), slice(*kept)) for start, kept in zip(starts, edges, strict=True)]


def count_tiles(size_px: tuple[int, int], tiling: Tiling) -> int:
    """Return the number of tiles of a frame of that size."""
    rows, columns = (spans(*axis, tiling.overlap_px) for axis in zip(size_px, tiling.tile_px, strict=True))
    return len(rows) * len(columns)


def tiled_classes(
    classes_of: Callable[[np.ndarray], np.ndarray],
    read: Callable[[slice, slice], np.ndarray],
    size_px: tuple[int, int],
    tiling: Tiling,
) -> np.ndarray:
    """Return the class map uint8 (H, W) of a frame; hold only one tile of it in memory.

    Args:
        classes_of: returns the class map uint8 (h, w) of a tile uint8 (h, w, 3).
        read: returns the tile uint8 (h, w, 3) at these rows and columns of the frame.
    """
    classes_HW = np.empty(size_px, np.uint8)
    for rows in spans(size_px[0], tiling.tile_px[0], tiling.overlap_px):
        for columns in spans(size_px[1], tiling.tile_px[1], tiling.overlap_px):
            tile_hw = classes_of(read(rows.read, columns.read))
            classes_HW[rows.kept, columns.kept] = tile_hw[rows.kept_in_tile, columns.kept_in_tile]
    return classes_HW
