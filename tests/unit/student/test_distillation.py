"""Distillation losses against float64 written out by hand, and what they add to the label loss."""

import numpy as np
import pytest
import torch

from segdistill.formats.classes import IGNORE
from segdistill.params.model import LossWeights
from segdistill.student.distillation import (
    DISTILLATION_LOSSES,
    channel_kl,
    combine_losses,
    kl,
    pixel_weights,
    sigmoid_kl,
)


@pytest.fixture
def logits_2533():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, 3, 3, generator=generator, requires_grad=True) for _ in range(2)]


def softmax64(values, axis):
    shifted = np.exp(values - values.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def kl64(teacher, student, axes):
    t, s = softmax64(teacher, axes), softmax64(student, axes)
    return (t * (np.log(t) - np.log(s))).sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_pixelwise_and_channelwise_kl_against_float64(logits_2533, temperature):
    student, teacher = (logits.detach().double().numpy() / temperature for logits in logits_2533)
    assert kl(*logits_2533, temperature).item() == pytest.approx(kl64(teacher, student, 1) / 18, rel=1e-5)
    flat_student, flat_teacher = student.reshape(2, 5, 9), teacher.reshape(2, 5, 9)
    assert channel_kl(*logits_2533, temperature).item() == pytest.approx(
        kl64(flat_teacher, flat_student, 2) / 10, rel=1e-5
    )


def test_sigmoid_kl_against_float64(logits_2533):
    student, teacher = (
        (1 / (1 + np.exp(-logits.detach().double().numpy())) / 0.1).reshape(2, 45) for logits in logits_2533
    )
    assert sigmoid_kl(*logits_2533, 0.1).item() == pytest.approx(kl64(teacher, student, 1) / 2, rel=1e-4)


@pytest.mark.parametrize(("name", "temperature"), [("kl", 2.0), ("channel_kl", 2.0), ("sigmoid_kl", 0.01)])
def test_distillation_has_a_finite_gradient_and_none_at_its_minimum(logits_2533, name, temperature):
    student, teacher = logits_2533
    DISTILLATION_LOSSES[name](student, teacher.detach(), temperature).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0
    same = teacher.detach().clone().requires_grad_()
    loss = DISTILLATION_LOSSES[name](same, teacher.detach(), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-5


def test_combined_loss_weighs_both_losses_and_keeps_t_squared():
    label, distillation = torch.tensor(2.0), torch.tensor(3.0)
    assert combine_losses(label, distillation, LossWeights(0.75, 0.25), 2.0).item() == pytest.approx(
        0.75 * 2 + 0.25 * 4 * 3
    )


def test_weighted_kl_against_float64(logits_2533):
    student, teacher = (logits.detach().double().numpy() / 2 for logits in logits_2533)
    weights = np.random.default_rng(0).random((2, 3, 3))
    t, s = softmax64(teacher, 1), softmax64(student, 1)
    expected = ((t * (np.log(t) - np.log(s))).sum(1) * weights).sum() / weights.sum()
    assert kl(*logits_2533, 2.0, torch.tensor(weights).float()).item() == pytest.approx(expected, rel=1e-5)
    assert kl(*logits_2533, 2.0, torch.ones(2, 3, 3)).item() == pytest.approx(kl(*logits_2533, 2.0).item(), rel=1e-6)


def test_kl_of_no_pixel_is_zero_with_zero_gradient(logits_2533):
    student, teacher = logits_2533
    loss = kl(student, teacher, 1.0, torch.zeros(2, 3, 3))
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("stride", [1, 4])
def test_weights_of_pixels_against_numpy(logits_2533, stride):
    """Cell by cell: the pixel at its centre has the label, and those around it have others."""
    teacher = logits_2533[1].detach()
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 3, 4, IGNORE], (2, 3, 3)).astype(np.uint8)
    labels[0, 0, 0], labels[1, 2, 2] = IGNORE, teacher[1, :, 2, 2].argmax()
    pixels = rng.integers(0, 5, (2, 3 * stride, 3 * stride)).astype(np.uint8)
    pixels[:, stride // 2 :: stride, stride // 2 :: stride] = labels
    p = softmax64(teacher.double().numpy(), 1)
    right, probability = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))
    for b, y, x in np.ndindex(2, 3, 3):
        label = labels[b, y, x]
        right[b, y, x] = label == IGNORE or p[b, :, y, x].argmax() == label
        probability[b, y, x] = 1 if label == IGNORE else p[b, label, y, x]
    assert 0 < right.mean() < 1
    found = [pixel_weights(where, teacher, torch.tensor(pixels)).numpy() for where in ("right", "label_probability")]
    np.testing.assert_array_equal(found[0], right)
    np.testing.assert_allclose(found[1], probability, rtol=1e-5)
