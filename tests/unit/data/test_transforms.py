"""Crops, colours and normalisation against torchvision and plain slicing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from segdistill.data.transforms import crop, normalize, resized
from segdistill.formats.header import MEAN, STD
from segdistill.nets.resize import resize_images
from segdistill.training.batches import color_jitter


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def corners(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs)


def torchvision_jitter(images_BHW3: torch.Tensor, colour_B3: np.ndarray) -> torch.Tensor:
    rows = []
    for image, (brightness, contrast, saturation) in zip(images_BHW3, colour_B3.tolist(), strict=True):
        pixels = image.permute(2, 0, 1).float() / 255
        pixels = tv.adjust_contrast(tv.adjust_brightness(pixels, brightness), contrast)
        rows.append(tv.adjust_saturation(pixels, saturation).permute(1, 2, 0) * 255)
    return torch.stack(rows)


def test_normalize_equals_torchvision():
    images = torch.from_numpy(noise(2, 5, 7, 3))
    expected = tv.normalize(images.permute(0, 3, 1, 2).float() / 255, MEAN, STD)
    torch.testing.assert_close(normalize(images), expected, rtol=0, atol=1e-6)


def test_normalize_returns_channels_last_memory():
    assert normalize(torch.from_numpy(noise(2, 5, 7, 3))).is_contiguous(memory_format=torch.channels_last)


def test_normalize_does_not_change_its_input():
    images = torch.from_numpy(noise(1, 4, 4, 3))
    before = images.clone()
    normalize(images)
    assert torch.equal(images, before)


@given(st.lists(st.tuples(*[st.floats(0, 2)] * 3), min_size=1, max_size=4), st.integers(0, 100))
@settings(deadline=None, max_examples=40)
def test_color_jitter_equals_torchvision_up_to_rounding(factors, seed):
    images, colour = torch.from_numpy(noise(len(factors), 6, 5, 3, seed=seed)), np.array(factors)
    found = color_jitter(images, colour)
    assert found.dtype == torch.uint8
    assert (found.float() - torchvision_jitter(images, colour)).abs().max() <= 1


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_colour_factor_changes_the_image(which):
    images, colour = torch.from_numpy(noise(1, 6, 5, 3)), np.ones((1, 3))
    colour[0, which] = 0.5
    assert not torch.equal(color_jitter(images, colour), images)


def test_colour_factors_of_1_change_nothing():
    images = torch.from_numpy(noise(2, 6, 5, 3))
    assert torch.equal(color_jitter(images, np.ones((2, 3))), images)


def test_saturation_0_is_grey():
    grey = color_jitter(torch.from_numpy(noise(1, 6, 5, 3)), np.array([[1.0, 1.0, 0.0]]))
    assert torch.equal(grey[..., 0], grey[..., 1])
    assert torch.equal(grey[..., 0], grey[..., 2])


def test_color_jitter_treats_each_image_alone():
    images, colour = torch.from_numpy(noise(3, 6, 5, 3)), np.random.default_rng(1).uniform(0.5, 1.5, (3, 3))
    alone = torch.cat([color_jitter(images[i : i + 1], colour[i : i + 1]) for i in range(3)])
    assert torch.equal(color_jitter(images, colour), alone)


def test_crop_equals_slicing():
    source = noise(3, 10, 12, 3)
    frames, origins, flips = np.array([2, 0, 2]), corners((1, 3), (0, 0), (6, 5)), np.array([False, True, True])
    out = crop(source, frames, origins, flips, (4, 7), np.empty((3, 4, 7, 3), np.uint8))
    assert np.array_equal(out[0], source[2, 1:5, 3:10])
    assert np.array_equal(out[1], source[0, 0:4, 0:7][:, ::-1])
    assert np.array_equal(out[2], source[2, 6:10, 5:12][:, ::-1])


def test_crop_beyond_the_frame_is_refused():
    out = np.empty((1, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="broadcast"):
        crop(noise(1, 6, 8), np.array([0]), corners((4, 6)), np.array([False]), (4, 4), out)


sides = st.integers(1, 40)


# torch's resizing of floats is wrong where an image becomes one pixel wide.
@given(sides, sides, sides, st.integers(2, 40))
@settings(deadline=None, max_examples=60)
def test_resized_image_is_the_interpolated_one_rounded(h, w, H, W):
    window = noise(h, w, 3)
    expected = resize_images(window[None], (H, W))[0]
    found = resized(window, (H, W))
    assert (found.dtype, found.shape) == (np.uint8, (H, W, 3))
    assert np.abs(found.astype(int) - expected).max() <= 1


@given(sides, sides, sides, sides)
@settings(deadline=None, max_examples=60)
def test_resized_label_is_that_under_each_centre(h, w, H, W):
    window = noise(h, w)
    expected = [
        [window[int(Fraction(2 * i + 1, 2) * h / H), int(Fraction(2 * j + 1, 2) * w / W)] for j in range(W)]
        for i in range(H)
    ]
    assert np.array_equal(resized(window, (H, W)), expected)


def test_windows_of_all_sizes_become_crops_of_one():
    images, labels = noise(3, 20, 30, 3), noise(3, 20, 30)
    frames, origins, flips = np.array([2, 0, 1]), corners((1, 3), (0, 0), (6, 5)), np.array([False, True, True])
    windows = np.array([(4, 6), (8, 12), (14, 21)])
    for source in (images, labels):
        out = crop(source, frames, origins, flips, windows, np.empty((3, 8, 12, *source.shape[3:]), np.uint8))
        assert np.array_equal(out[0], resized(source[2, 1:5, 3:9], (8, 12)))
        assert np.array_equal(out[1], source[0, :8, :12][:, ::-1])
        assert np.array_equal(out[2], resized(source[1, 6:20, 5:26], (8, 12))[:, ::-1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_scaled_image_and_label_stay_aligned(flip, factor):
    """Blocks of 16 pixels, of one class and colour each: wherever a crop shows the inside of a block, both agree."""
    labels = np.random.default_rng(0).integers(0, 200, (1, 8, 8)).repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)
    images = np.stack([labels, labels, labels], axis=-1)
    at = (np.array([0]), corners((16, 32)), np.array([flip]), np.array([[16 * factor, 16 * factor]]))
    image = crop(images, *at, np.empty((1, 32, 32, 3), np.uint8))[0, ..., 0]
    label = crop(labels, *at, np.empty((1, 32, 32), np.uint8))[0]
    block = 32 // factor
    inside = (np.arange(32) % block >= block // 4) & (np.arange(32) % block < block - block // 4)
    assert np.array_equal(image[np.ix_(inside, inside)], label[np.ix_(inside, inside)])
    assert len(np.unique(label)) > 1 or factor == 1


@pytest.mark.parametrize("flip", [False, True])
def test_image_label_and_logits_stay_aligned(flip):
    """The label is written into the image and into the logits at stride 4, and found in all three after cropping."""
    cells = np.random.default_rng(0).integers(0, 19, (2, 8, 10))
    labels = cells.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    images = np.stack([labels, labels + 100, labels], axis=-1)
    logits = np.eye(19, dtype=np.float16)[cells]
    frames, origins, flips = np.array([1, 0]), corners((4, 12), (16, 0)), np.array([flip, flip])
    image = crop(images, frames, origins, flips, (16, 24), np.empty((2, 16, 24, 3), np.uint8))
    label = crop(labels, frames, origins, flips, (16, 24), np.empty((2, 16, 24), np.uint8))
    logit = crop(logits, frames, origins // 4, flips, (4, 6), np.empty((2, 4, 6, 19), np.float16))
    assert np.array_equal(image[..., 0], label)
    assert np.array_equal(logit.argmax(-1), label[:, ::4, ::4])
