"""Draws are functions of what they are for: of seed, purpose and counters, never of what was drawn before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdistill.data.sampling import BatchSampler, ViewSpec, generator


def batches(seed=0, phase="distill", frames=7, views=3, batch=4, flip_probability=0.5, jitter=0.2):
    return BatchSampler(seed, phase, frames, views, batch, flip_probability, jitter)


def view_origins(seed, frames, views, frame_px, crop_px, stride) -> np.ndarray:
    return ViewSpec("data", frames, frame_px, crop_px, views, stride, seed).origins()


def same(first, second) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def frames_of(source: BatchSampler, first: int, end: int) -> list[int]:
    return np.concatenate([source.indices(step).frames for step in range(first, end)]).tolist()


def test_equal_arguments_give_equal_streams():
    assert np.array_equal(generator(3, "views", 1, 2).random(9), generator(3, "views", 1, 2).random(9))


def test_streams_are_the_same_on_every_machine():
    # Frozen: a change of these numbers changes every result of every earlier sweep.
    assert generator(0, "views", 5).integers(1000, size=5).tolist() == [876, 658, 814, 652, 27]


@pytest.mark.parametrize(
    "other", [(1, "views", 1, 2), (0, "batch", 1, 2), (0, "views", 1, 3), (0, "views", 2, 1), (0, "views", 12)]
)
def test_any_other_argument_gives_another_stream(other):
    assert not np.array_equal(generator(0, "views", 1, 2).random(9), generator(*other).random(9))


sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**40), st.integers(0, 4), st.integers(1, 5), sizes, sizes, sizes, sizes, st.sampled_from([1, 4]))
def test_views_are_within_the_frame_on_the_grid(seed, frames, views, crop_h, crop_w, more_h, more_w, stride):
    crop_px, frame_px = (crop_h * stride, crop_w * stride), (crop_h * stride + more_h, crop_w * stride + more_w)
    origins = view_origins(seed, frames, views, frame_px, crop_px, stride)
    assert origins.shape == (frames, views, 2)
    assert (origins >= 0).all()
    assert (origins + crop_px <= frame_px).all()
    assert (origins % stride == 0).all()


def test_views_reach_every_place_of_the_grid():
    origins = view_origins(0, 100, 8, (12, 16), (4, 8), 4)
    assert {tuple(corner) for corner in origins.reshape(-1, 2).tolist()} == {
        (top, left) for top in (0, 4, 8) for left in (0, 4, 8)
    }


def test_longer_data_set_keeps_the_views_of_its_first_frames():
    few, many = (view_origins(5, frames, 4, (64, 128), (32, 32), 4) for frames in (3, 10))
    assert np.array_equal(few, many[:3])


def test_frames_have_different_views():
    origins = view_origins(5, 10, 4, (256, 256), (32, 32), 4)
    assert len({frame.tobytes() for frame in origins}) == 10


def test_crop_of_the_whole_frame_starts_at_its_corner():
    assert not view_origins(0, 5, 3, (64, 128), (64, 128), 4).any()


def scaled(scale_range, seed=0, frames=50, views=8, frame_px=(240, 320), crop_px=(96, 128)) -> ViewSpec:
    return ViewSpec("data", frames, frame_px, crop_px, views, 4, seed, scale_range)


def test_unscaled_views_are_those_of_every_earlier_cache():
    # Frozen: caches name their views by seed alone.
    spec = ViewSpec("data", 2, (64, 128), (32, 32), 2, 4, 5)
    assert spec.origins().tolist() == [[[28, 20], [16, 4]], [[24, 0], [12, 72]]]
    assert (spec.sizes() == (32, 32)).all()
    assert "scale_range" not in spec.facts()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**40), st.floats(0.1, 10), st.floats(0.1, 10), sizes, sizes, sizes, sizes)
def test_windows_of_any_scale_are_within_the_frame(seed, one, other, crop_h, crop_w, more_h, more_w):
    crop_px, frame_px = (crop_h, crop_w), (crop_h + more_h, crop_w + more_w)
    spec = scaled((min(one, other), max(one, other, 1.0)), seed, 4, 5, frame_px, crop_px)
    origins, windows = spec.origins(), spec.sizes()
    assert origins.shape == windows.shape == (4, 5, 2)
    assert (origins >= 0).all()
    assert (windows >= 1).all()
    assert (origins + windows <= frame_px).all()


def test_windows_are_the_crop_divided_by_scales_that_fill_the_range():
    heights, widths = np.moveaxis(scaled((0.5, 2.0), frames=400).sizes(), 2, 0)
    scales = 96 / heights
    assert (np.abs(heights - 96 / 128 * widths) <= 1).all(), "both sides share one scale"
    assert scales.min() == pytest.approx(0.5, abs=0.01)
    assert scales.max() == pytest.approx(2.0, abs=0.03)
    assert np.mean(scales < 1.25) == pytest.approx(0.5, abs=0.03), "uniform over the range"


def test_range_begins_at_the_smallest_scale_that_fits():
    windows = scaled((0.1, 1.0), frames=400, frame_px=(120, 320)).sizes()
    assert windows.max(axis=(0, 1)).tolist() == [120, 160]
    assert np.mean(windows[..., 0] == 120) < 0.05, "the views that would be larger do not pile up there"


def test_one_scale_for_all_views():
    assert (scaled((0.5, 0.5)).sizes() == (192, 256)).all()


def test_scales_keep_with_more_frames_and_more_views():
    few, many = scaled((0.5, 2.0), frames=3, views=2), scaled((0.5, 2.0), frames=9, views=5)
    assert np.array_equal(few.sizes(), many.sizes()[:3, :2])
    assert np.array_equal(few.origins(), many.origins()[:3, :2])


def test_scaled_views_reach_every_row_of_the_frame():
    spec = scaled((0.5, 2.0), frames=400)
    (tops, _), (heights, _) = np.moveaxis(spec.origins(), 2, 0), np.moveaxis(spec.sizes(), 2, 0)
    assert tops.min() == 0
    assert (tops + heights).max() == 240


def test_facts_name_the_scales():
    assert scaled((0.5, 2.0)).facts()["scale_range"] == [0.5, 2.0]


def test_indices_do_not_depend_on_the_order_of_calls():
    forward, backward = batches(), batches()
    ahead = [forward.indices(step) for step in range(20)]
    back = [backward.indices(step) for step in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(ahead, back, strict=True))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 9), st.integers(1, 12), st.integers(0, 4))
def test_each_epoch_shows_every_frame_once(seed, frames, batch, epoch):
    shown = frames_of(batches(seed=seed, frames=frames, batch=batch), 0, (epoch + 1) * frames // batch + 1)
    assert sorted(shown[epoch * frames : (epoch + 1) * frames]) == list(range(frames))


def test_epochs_differ_in_order():
    shown = frames_of(batches(frames=16, batch=16), 0, 3)
    assert shown[:16] != shown[16:32] != shown[32:]


@pytest.mark.parametrize("other", [{"phase": "finetune"}, {"seed": 1}])
def test_phase_and_seed_change_all_indices(other):
    first = batches(frames=100, views=100, batch=16).indices(0)
    second = batches(frames=100, views=100, batch=16, **other).indices(0)
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_steps_have_different_indices():
    source = batches(batch=32)
    assert not any(np.array_equal(a, b) for a, b in zip(source.indices(0), source.indices(1), strict=True))


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (1.0, 1.0)])
def test_flips_never_or_always(probability, share):
    source = batches(batch=64, flip_probability=probability)
    assert np.mean([source.indices(step).flips for step in range(8)]) == share


def test_flips_are_as_frequent_as_their_probability():
    source = batches(batch=64, flip_probability=0.25)
    assert np.mean([source.indices(step).flips for step in range(64)]) == pytest.approx(0.25, abs=0.03)


def test_without_jitter_colour_factors_are_exactly_1():
    assert (batches(jitter=0.0).indices(5).colour == 1).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.integers(1, 20), st.floats(0, 1))
def test_draws_stay_within_their_bounds(step, views, jitter):
    indices = batches(frames=5, views=views, batch=8, jitter=jitter).indices(step)
    assert indices.colour.shape == (8, 3)
    assert (np.abs(indices.colour - 1) <= jitter).all()
    assert ((indices.views >= 0) & (indices.views < views)).all()
    assert ((indices.frames >= 0) & (indices.frames < 5)).all()


def test_every_view_is_drawn():
    source = batches(views=8, batch=64)
    assert {int(view) for step in range(4) for view in source.indices(step).views} == set(range(8))


def test_flip_probability_does_not_change_frames_and_views():
    with_flips, without = batches(flip_probability=1.0).indices(2), batches(flip_probability=0.0).indices(2)
    assert same((with_flips.frames, with_flips.views, with_flips.seed), (without.frames, without.views, without.seed))


def test_drawn_views_are_those_of_the_first_batches():
    source = batches(views=8, batch=3)
    expected = {pair for step in range(4) for pair in zip(*source.indices(step)[1:3], strict=True)}
    assert set(zip(*np.nonzero(source.drawn(4)), strict=True)) == expected
