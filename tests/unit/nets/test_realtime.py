"""DDRNet and PIDNet: sizes of images and of networks, and the losses of their auxiliary heads."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segdistill.formats.classes import IGNORE
from segdistill.nets.realtime import DAPPM, PAPPM
from segdistill.nets.registry import build, shipped_parameters
from segdistill.nets.resize import upsample
from segdistill.networks.pidnet_s import boundary_loss, is_boundary
from segdistill.scoring.label_losses import label_loss

pytestmark = pytest.mark.usefixtures("one_thread")
ARCHS = ("ddrnet23_slim", "pidnet_s")
CLASSES = 5
CROSS_ENTROPY = partial(label_loss, SimpleNamespace(label_loss="cross_entropy", focal_gamma=0.0))


@pytest.fixture(scope="module", params=ARCHS)
def net(request):
    torch.manual_seed(0)
    return build(request.param, CLASSES, output_stride=8)


@pytest.mark.parametrize("size_px", [(32, 32), (33, 47), (64, 128), (72, 96), (96, 96)])
def test_images_of_any_size_train_and_evaluate(net, size_px):
    cells = tuple((size + 7) // 8 for size in size_px)
    outputs = net.train()(torch.randn(2, 3, *size_px))
    assert [tuple(each.shape[-2:]) for each in outputs] == [cells] * (1 + len(net.auxiliary_heads))
    assert all(each.isfinite().all() for each in outputs)
    with torch.no_grad():
        logits = net.eval()(torch.randn(1, 3, *size_px))
    assert tuple(logits.shape) == (1, CLASSES, *cells)


@pytest.mark.parametrize("pooling", [DAPPM, PAPPM])
def test_pooling_resizes_the_average_of_the_image_as_the_papers_do(pooling):
    torch.manual_seed(0)
    net, x = pooling(8, 4, 6).eval(), torch.randn(1, 8, 5, 7)
    with torch.no_grad():
        *_, of_image = net.scales(x)
        expected = net.scale4(x)
        torch.testing.assert_close(of_image.expand(-1, -1, 5, 7), upsample(expected, (5, 7)))
        assert tuple(net(x).shape) == (1, 6, 5, 7)


@pytest.mark.parametrize(("arch", "millions"), [("ddrnet23_slim", 5.7), ("pidnet_s", 7.6)])
def test_size_is_the_published_one(arch, millions):
    with torch.device("meta"):
        net = build(arch, 19, output_stride=8)
    assert round(shipped_parameters(net) / 1e6, 1) == millions


def test_auxiliary_heads_do_not_count_as_shipped(net):
    in_heads = sum(weight.numel() for head in net.auxiliary_heads for weight in net.get_submodule(head).parameters())
    assert in_heads > 0
    assert shipped_parameters(net) == sum(weight.numel() for weight in net.parameters()) - in_heads


def labels_of(rng, *shape) -> torch.Tensor:
    """Class maps of blocks, some of them void."""
    classes = rng.choice([0, 1, 2, IGNORE], shape).repeat(5, -1).repeat(6, -2)
    return torch.from_numpy(classes)


def test_boundaries_are_pixels_with_two_classes_around_them():
    labels = labels_of(np.random.default_rng(0), 2, 3, 4)
    found = is_boundary(labels)
    for frame, (row, column) in ((f, place) for f in range(2) for place in np.ndindex(*labels.shape[1:])):
        around = labels[frame, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3]
        assert found[frame, row, column] == (len(set(around.flatten().tolist()) - {IGNORE}) > 1)


def test_boundaries_are_four_pixels_wide():
    labels = torch.zeros(1, 9, 12, dtype=torch.long)
    labels[..., 6:] = 3
    assert is_boundary(labels)[0, 0].nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_boundary_loss_is_the_papers():
    rng = np.random.default_rng(1)
    labels = labels_of(rng, 2, 3, 4)
    logits = torch.from_numpy(rng.normal(size=labels.shape))
    valid = labels != IGNORE
    at = (is_boundary(labels) & valid)[valid].numpy()
    log_p = logits[valid].numpy()
    positive, negative = at.sum(), (~at).sum()
    assert positive > 0
    nll = np.where(at, np.logaddexp(0, -log_p), np.logaddexp(0, log_p))
    expected = (nll * np.where(at, negative, positive) / (positive + negative)).mean()
    assert boundary_loss(logits, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize("label", [0, IGNORE])
def test_labels_without_boundaries_have_no_boundary_loss(label):
    logits = torch.randn(2, 8, 8, requires_grad=True)
    loss = boundary_loss(logits, torch.full((2, 8, 8), label))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_ddrnets_head_learns_the_labels_at_0_4():
    net = build("ddrnet23_slim", CLASSES, output_stride=8)
    extra, pixels = torch.randn(2, CLASSES, 3, 4), torch.randn(2, CLASSES, 18, 20)
    labels = labels_of(np.random.default_rng(2), 2, 3, 4)
    expected = 0.4 * CROSS_ENTROPY(upsample(extra, labels.shape[1:]), labels)
    torch.testing.assert_close(net.auxiliary_loss([extra], pixels, labels, CROSS_ENTROPY), expected)


def test_pidnets_heads_learn_labels_and_boundaries_and_repeat_the_label_loss_there():
    net = build("pidnet_s", CLASSES, output_stride=8)
    labels = labels_of(np.random.default_rng(3), 2, 3, 4)
    detail, pixels = torch.randn(2, CLASSES, 3, 4), torch.randn(2, CLASSES, *labels.shape[1:])
    boundary = 4 * torch.randn(2, 1, *labels.shape[1:])
    loss = net.auxiliary_loss([detail, boundary], pixels, labels, CROSS_ENTROPY)

    certain = (torch.sigmoid(boundary[:, 0]) > 0.8) & (labels != IGNORE)
    assert 0 < certain.sum() < labels.numel()
    at_boundary = F.cross_entropy(pixels.permute(0, 2, 3, 1)[certain], labels[certain])
    of_detail = F.cross_entropy(upsample(detail, labels.shape[1:]), labels, ignore_index=IGNORE)
    torch.testing.assert_close(loss, 0.4 * of_detail + 20 * boundary_loss(boundary[:, 0], labels) + at_boundary)


def test_batch_without_labels_gives_no_auxiliary_loss(net):
    outputs = net.train()(torch.randn(2, 3, 32, 32))
    void = torch.full((2, 32, 32), IGNORE)
    loss = net.auxiliary_loss(list(outputs[1:]), upsample(outputs[0], (32, 32)), void, CROSS_ENTROPY)
    assert loss.item() == 0
