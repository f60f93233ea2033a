"""Losses against float64 written out by hand, torchvision and finite differences."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from segdistill.scoring.label_losses import DISTILLATION, IGNORE, channel_kl, combine_losses, kl, label_loss, sigmoid_kl


def cross_entropy(logits, labels):
    return label_loss("cross_entropy", logits, labels, 0.0)


def focal(logits, labels, gamma):
    return label_loss("focal", logits, labels, gamma)


@pytest.fixture
def logits_2533():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 5, 3, 3, generator=generator, requires_grad=True) for _ in range(2)]


def labels_233():
    return torch.tensor([[[0, 1, 2], [3, 4, 255], [0, 0, 255]], [[4, 4, 4], [255, 255, 255], [1, 2, 3]]])


def softmax64(values, axis):
    shifted = np.exp(values - values.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def test_cross_entropy_is_the_mean_over_valid_pixels(logits_2533):
    logits, labels = logits_2533[0], labels_233()
    p = softmax64(logits.detach().double().numpy(), 1)
    losses = [
        -math.log(p[b, labels[b, y, x], y, x])
        for b in range(2)
        for y in range(3)
        for x in range(3)
        if labels[b, y, x] != IGNORE
    ]
    assert cross_entropy(logits, labels).item() == pytest.approx(np.mean(losses), rel=1e-6)


def test_void_pixels_change_nothing(logits_2533):
    logits, labels = logits_2533[0], labels_233()
    for loss in (cross_entropy, lambda a, b: focal(a, b, 2.0)):
        alone = loss(logits[:1], labels[:1])
        with_void_frame = loss(logits, torch.cat([labels[:1], torch.full_like(labels[:1], IGNORE)]))
        assert alone.item() == pytest.approx(with_void_frame.item(), rel=1e-6)


def test_all_void_is_zero_with_zero_gradient(logits_2533):
    logits = logits_2533[0]
    loss = cross_entropy(logits, torch.full((2, 3, 3), IGNORE)) + focal(logits, torch.full((2, 3, 3), IGNORE), 2.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum().item() == 0


def test_focal_with_gamma_0_is_cross_entropy(logits_2533):
    logits, labels = logits_2533[0], labels_233()
    assert focal(logits, labels, 0.0).item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)


def test_focal_equals_torchvision_for_two_classes():
    # With two classes and logits (0, z) the softmax is a sigmoid of z, for which torchvision has a focal loss.
    z = torch.linspace(-4, 4, 12).reshape(1, 3, 4)
    labels = (torch.arange(12).reshape(1, 3, 4) % 2).long()
    ours = focal(torch.stack([torch.zeros_like(z), z], 1), labels, 2.0)
    theirs = sigmoid_focal_loss(z, labels.float(), alpha=-1, gamma=2.0, reduction="mean")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


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
    DISTILLATION[name](student, teacher.detach(), temperature).backward()
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() > 0
    same = teacher.detach().clone().requires_grad_()
    loss = DISTILLATION[name](same, teacher.detach(), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert same.grad.abs().max() < 1e-5


def test_mixed_keeps_t_squared_and_the_control_is_the_label_loss():
    label, distillation = torch.tensor(2.0), torch.tensor(3.0)
    assert combine_losses(label, distillation, 0.25, 2.0).item() == pytest.approx(0.75 * 2 + 0.25 * 4 * 3)
    assert combine_losses(label, None, 0.25, 2.0).item() == 2.0
