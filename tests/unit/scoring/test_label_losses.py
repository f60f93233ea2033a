"""Label losses against float64 written out by hand, and torchvision."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from segdistill.formats.classes import IGNORE
from segdistill.scoring.label_losses import label_loss


def cross_entropy(logits, labels):
    return label_loss("cross_entropy", logits, labels, 0.0)


def focal(logits, labels, gamma):
    return label_loss("focal", logits, labels, gamma)


@pytest.fixture
def logits_2533():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 5, 3, 3, generator=generator, requires_grad=True)


def labels_233():
    return torch.tensor([[[0, 1, 2], [3, 4, 255], [0, 0, 255]], [[4, 4, 4], [255, 255, 255], [1, 2, 3]]])


def softmax64(values, axis):
    shifted = np.exp(values - values.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def test_cross_entropy_is_the_mean_over_valid_pixels(logits_2533):
    logits, labels = logits_2533, labels_233()
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
    logits, labels = logits_2533, labels_233()
    for loss in (cross_entropy, lambda a, b: focal(a, b, 2.0)):
        alone = loss(logits[:1], labels[:1])
        with_void_frame = loss(logits, torch.cat([labels[:1], torch.full_like(labels[:1], IGNORE)]))
        assert alone.item() == pytest.approx(with_void_frame.item(), rel=1e-6)


def test_all_void_is_zero_with_zero_gradient(logits_2533):
    logits = logits_2533
    loss = cross_entropy(logits, torch.full((2, 3, 3), IGNORE)) + focal(logits, torch.full((2, 3, 3), IGNORE), 2.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum().item() == 0


def test_focal_with_gamma_0_is_cross_entropy(logits_2533):
    logits, labels = logits_2533, labels_233()
    assert focal(logits, labels, 0.0).item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)


def test_focal_equals_torchvision_for_two_classes():
    # With two classes and logits (0, z) the softmax is a sigmoid of z, for which torchvision has a focal loss.
    z = torch.linspace(-4, 4, 12).reshape(1, 3, 4)
    labels = (torch.arange(12).reshape(1, 3, 4) % 2).long()
    ours = focal(torch.stack([torch.zeros_like(z), z], 1), labels, 2.0)
    theirs = sigmoid_focal_loss(z, labels.float(), alpha=-1, gamma=2.0, reduction="mean")
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
