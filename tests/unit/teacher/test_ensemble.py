"""Ensembles against plain float64: the mean of softmaxes, flipped and scaled images, sliding windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.nets.device import Compute
from segdistill.teacher.model import EnsembleTeacher, SoftmaxMean, resized, sliding_window_logits
from support.onnx_models import cell_logits, weights

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = Compute(torch.device("cpu"), torch.float32, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), np.uint8)
CLASSES = 3


class Cells:
    """A member whose logits are those of `cell_logits`; with `size_px` it refuses images of any other size."""

    name = "cells"

    def __init__(self, seed: int, size_px: tuple[int, int] | None = None) -> None:
        self.weights, self.size_px = weights(CLASSES, seed) / 20, size_px

    def logits(self, images_BHW3: np.ndarray) -> torch.Tensor:
        assert self.size_px is None or images_BHW3.shape[1:3] == self.size_px
        return torch.from_numpy(cell_logits(images_BHW3, self.weights)).float()


def ensemble(members: list, flip: bool = False, scales: tuple[float, ...] = (1.0,)) -> EnsembleTeacher:
    return EnsembleTeacher(members, flip, scales, CPU.device)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)  # these are small
    return powers / powers.sum(1, keepdims=True)


def mean_of(predictions: list[np.ndarray]) -> np.ndarray:
    """Logits float64 (B, C, h, w): log of the mean softmax, plus the mean logsumexp."""
    shares = np.mean([softmax(logits) for logits in predictions], axis=0)
    return np.log(shares) + np.mean([np.log(np.exp(logits).sum(1, keepdims=True)) for logits in predictions], axis=0)


def mirrored_logits(member: Cells, images_BHW3: np.ndarray) -> np.ndarray:
    return cell_logits(images_BHW3[:, :, ::-1], member.weights)[..., ::-1]


def test_single_member_that_runs_once_is_unchanged():
    member = Cells(0)
    assert torch.equal(ensemble([member]).logits(IMAGES), member.logits(IMAGES))


def test_ensemble_averages_softmaxes():
    members = [Cells(seed) for seed in range(3)]
    found = ensemble(members).logits(IMAGES).numpy()
    each = [cell_logits(IMAGES, member.weights) for member in members]
    np.testing.assert_allclose(found, mean_of(each), atol=1e-4)
    np.testing.assert_allclose(softmax(found), np.mean([softmax(x) for x in each], axis=0), atol=1e-5)
    assert np.abs(found - np.mean(each, axis=0)).max() > 0.1, "the mean of logits would differ"


def test_mean_of_equal_predictions_is_that_prediction():
    logits = torch.randn(1, 5, 2, 2) * 40
    mean = SoftmaxMean()
    for _ in range(3):
        mean.add(logits)
    torch.testing.assert_close(mean.logits(), logits, atol=1e-4, rtol=1e-5)


def test_certain_predictions_stay_finite():
    mean = SoftmaxMean()
    mean.add(torch.tensor([500.0, -500.0]).view(1, 2, 1, 1))
    mean.add(torch.tensor([400.0, 0.0]).view(1, 2, 1, 1))
    assert torch.isfinite(mean.logits()).all()


def test_flip_averages_with_the_mirrored_image():
    member = Cells(0)
    expected = mean_of([cell_logits(IMAGES, member.weights), mirrored_logits(member, IMAGES)])
    np.testing.assert_allclose(ensemble([member], flip=True).logits(IMAGES), expected, atol=1e-4)


def test_flipped_teacher_gives_mirrored_logits_of_a_mirrored_image():
    teacher = ensemble([Cells(0), Cells(1)], flip=True, scales=(0.5, 1.0))
    mirrored = np.ascontiguousarray(IMAGES[:, :, ::-1])
    torch.testing.assert_close(teacher.logits(mirrored), teacher.logits(IMAGES).flip(-1), atol=1e-4, rtol=1e-4)


def test_scales_are_averaged_at_the_size_of_the_image():
    member = Cells(0)
    found = ensemble([member], scales=(1.0, 0.5, 2.0)).logits(IMAGES)
    each = []
    for size in ((24, 32), (12, 16), (48, 64)):
        resized_images = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR) for image in IMAGES]
        logits = torch.from_numpy(cell_logits(np.stack(resized_images), member.weights))
        each.append(torch.nn.functional.interpolate(logits, size=(6, 8), mode="bilinear").numpy())
    # Pillow's rounding may differ by one in 255, at some of the 48 pixels that a logit is a sum over.
    off = np.abs(found.numpy() - mean_of(each))
    assert off.max() < 0.2
    assert off.mean() < 0.02


def test_images_are_resized_as_pillow_does():
    for scale in (0.5, 0.75, 1.5):
        size = [round(side * scale) for side in IMAGES.shape[1:3]]
        expected = np.asarray(Image.fromarray(IMAGES[0]).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        found = resized(IMAGES, scale)[0]
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1
    assert resized(IMAGES, 1.0) is IMAGES


@pytest.mark.parametrize("size_px", [(24, 32), (12, 16), (16, 20), (8, 8), (24, 12)])
def test_member_of_a_fixed_size_runs_window_by_window(size_px):
    # Its logits at a cell depend on that cell alone, so windows must not change them.
    found = sliding_window_logits(Cells(0, size_px), IMAGES)
    np.testing.assert_allclose(found, cell_logits(IMAGES, Cells(0).weights), atol=1e-4)


def test_windows_cover_sides_that_are_no_multiple():
    odd = IMAGES[:, :21, :30]
    found = sliding_window_logits(Cells(0, (8, 12)), odd)
    padded = np.pad(odd, ((0, 0), (0, 3), (0, 2), (0, 0)), "edge")
    np.testing.assert_allclose(found, cell_logits(padded, Cells(0).weights), atol=1e-4)


@pytest.mark.parametrize("size_px", [(28, 32), (24, 64), (10, 16)])
def test_images_smaller_than_a_fixed_size_are_refused(size_px):
    with pytest.raises(UserError, match=rf"cells: takes images of \[{size_px[0]}, {size_px[1]}\] .* got \[24, 32\]"):
        sliding_window_logits(Cells(0, size_px), IMAGES)
