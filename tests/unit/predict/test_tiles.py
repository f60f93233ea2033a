"""Tiles: they cover each pixel once, show the network enough around it, and are no larger than the given size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segdistill.predict.tiles import Span, Tiling, count_tiles, spans, tiled_classes


def test_spans_counted_by_hand():
    # Tiles of 10 that share 4 start at 0 and 6; the last ends at 20 and starts at 10. Overlaps 6..10 and 10..16.
    assert spans(20, 10, 4) == [
        Span(slice(0, 10), slice(0, 8)),
        Span(slice(6, 16), slice(8, 13)),
        Span(slice(10, 20), slice(13, 20)),
    ]


def test_a_frame_within_a_tile_is_one_tile():
    assert spans(10, 10, 4) == [Span(slice(0, 10), slice(0, 10))]


@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_every_pixel_is_given_once_and_well_inside_its_tile(length_px, tile_px, data):
    overlap_px = data.draw(st.integers(0, tile_px // 2))
    found = spans(length_px, tile_px, overlap_px)
    assert [pixel for span in found for pixel in range(span.kept.start, span.kept.stop)] == list(range(length_px))
    for span in found:
        assert span.read.stop - span.read.start == min(tile_px, length_px)
        assert span.read.start == 0 or span.kept.start - span.read.start >= overlap_px // 2
        assert span.read.stop == length_px or span.read.stop - span.kept.stop >= overlap_px // 2


@pytest.mark.parametrize(("tile_px", "overlap_px"), [((8, 8), 0), ((16, 8), 4), ((7, 11), 3), ((64, 64), 8)])
def test_what_depends_on_each_pixel_alone_is_the_same_in_tiles(tile_px, overlap_px):
    frame_HW3 = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    found = tiled_classes(
        lambda tile: tile[..., 1] // 16, lambda *part: frame_HW3[part], (37, 53), Tiling(tile_px, overlap_px)
    )
    assert np.array_equal(found, frame_HW3[..., 1] // 16)


def test_no_more_than_a_tile_is_read_at_once():
    sizes = []

    def read(rows: slice, columns: slice) -> np.ndarray:
        sizes.append((rows.stop - rows.start, columns.stop - columns.start))
        return np.zeros((*sizes[-1], 3), np.uint8)

    tiled_classes(lambda tile: tile[..., 0], read, (50, 100), Tiling((20, 30), 6))
    assert set(sizes) == {(20, 30)}
    assert len(sizes) == count_tiles((50, 100), Tiling((20, 30), 6)) == 4 * 4


def test_what_a_net_says_near_a_tiles_border_is_not_kept():
    def classes_of(tile: np.ndarray) -> np.ndarray:
        """1 within 3 pixels of the tile's border."""
        classes = np.ones(tile.shape[:2], np.uint8)
        classes[3:-3, 3:-3] = 0
        return classes

    found = tiled_classes(
        classes_of, lambda *part: np.zeros((40, 40, 3), np.uint8)[part], (40, 40), Tiling((16, 16), 6)
    )
    assert not found[3:-3, 3:-3].any()
