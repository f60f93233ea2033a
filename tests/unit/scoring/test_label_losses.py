"""Label losses against float64 written out by hand, and torchvision."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from segdistill.formats.classes import IGNORE
from segdistill.params.model import TrainingParams
from segdistill.scoring.evaluate import LabelLoss
from segdistill.scoring.label_losses import inverse_log_weights, label_loss


def settings(kind, **changed):
    return TrainingParams.model_construct(label_loss=kind, **({"focal_gamma": 2.0} | changed))


def cross_entropy(logits, labels, weights=None):
    return label_loss(settings("cross_entropy"), logits, labels, weights)


def focal(logits, labels, gamma):
    return label_loss(settings("focal", focal_gamma=gamma), logits, labels)


def ohem(logits, labels, threshold, min_share, weights=None):
    return label_loss(settings("ohem", ohem_threshold=threshold, ohem_min_share=min_share), logits, labels, weights)


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


def test_class_weights_make_torchs_weighted_cross_entropy(logits_2533):
    logits, labels = logits_2533, labels_233()
    weights = torch.tensor([0.5, 3.0, 1.0, 7.0, 0.1])
    ours, theirs = cross_entropy(logits, labels, weights), F.cross_entropy(logits, labels, weights, ignore_index=IGNORE)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
    assert cross_entropy(logits, labels, torch.full((5,), 3.0)).item() == pytest.approx(
        cross_entropy(logits, labels).item(), rel=1e-6
    )


def test_class_weights_of_void_pixels_are_zero_with_zero_gradient(logits_2533):
    loss = cross_entropy(logits_2533, torch.full((2, 3, 3), IGNORE), torch.ones(5))
    loss.backward()
    assert loss.item() == 0
    assert logits_2533.grad.abs().sum().item() == 0


def test_inverse_log_weights_are_those_of_enet():
    found = inverse_log_weights(torch.tensor([0.0, 0.01, 0.38]))
    assert found.tolist() == pytest.approx([1 / math.log(share) for share in (1.02, 1.03, 1.40)], rel=1e-5)


def hard_by_sorting(logits, labels, threshold, at_least):
    """The pixels that the public code of HRNet keeps: it sorts the probabilities of the valid ones."""
    p = softmax64(logits.detach().double().numpy(), 1)
    valid = [index for index in np.ndindex(2, 3, 3) if labels[index] != IGNORE]
    of_label = {index: p[index[0], labels[index], index[1], index[2]] for index in valid}
    ranked = sorted(valid, key=of_label.get)
    if at_least >= len(ranked):
        return ranked
    bound = max(of_label[ranked[at_least]], threshold)
    return [index for index in ranked if of_label[index] < bound]


@pytest.mark.parametrize(("threshold", "at_least"), [(0.7, 1), (0.2, 3), (0.1, 7), (1e-6, 2), (0.3, 18)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ohem_against_sorting_in_float64(logits_2533, threshold, at_least, weighted):
    logits, labels = logits_2533, labels_233()
    kept = hard_by_sorting(logits, labels, threshold, at_least)
    weights = [0.5, 3.0, 1.0, 7.0, 0.1] if weighted else [1.0] * 5
    p = softmax64(logits.detach().double().numpy(), 1)
    losses = [-math.log(p[index[0], labels[index], index[1], index[2]]) for index in kept]
    expected = np.average(losses, weights=[weights[labels[index]] for index in kept])
    given = torch.tensor(weights) if weighted else None
    assert ohem(logits, labels, threshold, at_least / 18, given).item() == pytest.approx(expected, rel=1e-5)


def test_ohem_has_no_gradient_on_easy_and_void_pixels(logits_2533):
    logits, labels = logits_2533, labels_233()
    kept = set(hard_by_sorting(logits, labels, 0.2, 3))
    assert 3 <= len(kept) < 13
    ohem(logits, labels, 0.2, 3 / 18).backward()
    moved = logits.grad.abs().sum(1)
    assert {index for index in np.ndindex(2, 3, 3) if moved[index] > 0} == kept


def test_ohem_keeps_equal_pixels_and_reports_what_is_not_finite():
    equal, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    assert ohem(equal, labels, 0.1, 0.25).item() == pytest.approx(math.log(3))
    assert ohem(equal, torch.full_like(labels, IGNORE), 0.1, 0.25).item() == 0
    equal[0, 0, 0, 0] = math.nan
    assert math.isnan(ohem(equal, labels, 0.1, 0.25).item())


@pytest.mark.parametrize(
    ("kind", "reported"),
    [("cross_entropy", "cross_entropy"), ("ohem", "cross_entropy"), ("focal", "focal")],
)
def test_val_reports_a_loss_over_all_pixels(kind, reported):
    assert LabelLoss.of(settings(kind, class_weights="inverse_log")).kind == reported
