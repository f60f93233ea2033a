"""Classes and losses of pixels, computed in strips, against torch's upsampling at full size in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.formats.classes import IGNORE
from segdistill.nets.resize import upsample
from segdistill.scoring import evaluate
from segdistill.scoring.evaluate import classes_and_loss_sum, classes_of, loss_sum

# (grid, frame): strides 4, 8 and 16, frames that no stride divides, one cell, one row, one pixel, and no upsampling.
SIZES = [
    ((16, 32), (64, 128)),
    ((8, 16), (64, 128)),
    ((4, 8), (64, 128)),
    ((9, 17), (33, 65)),
    ((5, 7), (37, 51)),
    ((1, 1), (5, 6)),
    ((2, 3), (1, 7)),
    ((3, 3), (1, 1)),
    ((6, 5), (6, 5)),
]
ONE_ROW = 1  # bytes: a strip has at least one row


def logits_of(grid: tuple[int, int], frames: int = 2, classes: int = 5) -> torch.Tensor:
    """Logits in channels-last memory, as networks give them."""
    values = torch.randn(frames, classes, *grid, generator=torch.Generator().manual_seed(0)) * 4
    return values.contiguous(memory_format=torch.channels_last)


def labels_of(size_px: tuple[int, int], frames: int = 2, classes: int = 5) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.choice([*range(classes), IGNORE], (frames, *size_px)).astype(np.uint8))


def loss64(logits: torch.Tensor, labels: torch.Tensor, gamma: float = 0.0) -> float:
    """The loss of all valid pixels in float64."""
    log_p = upsample(logits.double(), tuple(labels.shape[1:])).log_softmax(1).permute(0, 2, 3, 1)
    own = log_p[labels != IGNORE].gather(1, labels[labels != IGNORE].long()[:, None])
    return float((-((1 - own.exp()) ** gamma) * own).sum())


@pytest.mark.parametrize("strip_bytes", [ONE_ROW, 10_000, 2**21])
@pytest.mark.parametrize(("grid", "size_px"), SIZES)
def test_classes_and_losses_equal_float64_at_full_size(monkeypatch, grid, size_px, strip_bytes):
    monkeypatch.setattr(evaluate, "STRIP_BYTES", strip_bytes)
    logits, labels = logits_of(grid), labels_of(size_px)
    found = classes_of(logits, size_px)
    assert found.dtype == torch.uint8
    assert torch.equal(found, upsample(logits.double(), size_px).argmax(1).to(torch.uint8))
    for kind, gamma in (("cross_entropy", 0.0), ("focal", 2.0)):
        assert float(loss_sum(kind, logits, labels, gamma)) == pytest.approx(loss64(logits, labels, gamma), rel=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_classes_and_loss_together_have_the_bits_of_each_alone(kind):
    logits, labels = logits_of((9, 17)), labels_of((33, 65))
    classes, loss = classes_and_loss_sum(kind, logits, labels, 2.0)
    assert torch.equal(classes, classes_of(logits, (33, 65)))
    assert torch.equal(loss, loss_sum(kind, logits, labels, 2.0))


def test_classes_differ_from_float64_only_where_logits_are_equal_in_float32():
    # In noise the two largest logits are close more often than in real predictions.
    logits, size_px = logits_of((64, 128), classes=19), (256, 512)
    exact = upsample(logits.double(), size_px)
    best, found = exact.amax(1), exact.gather(1, classes_of(logits, size_px).long()[:, None])[:, 0]
    differing = best > found
    assert float((best - found).max()) < 4 * np.spacing(np.float32(logits.abs().max()))
    assert int(differing.sum()) <= 3  # of 262,144 pixels


def test_first_of_equal_logits_is_the_class():
    logits = torch.zeros(1, 4, 3, 3)
    logits[:, 0] = -1
    logits[:, 3, :, 2] = 1
    expected = torch.ones(12, 12)
    expected[:, 6:] = 3  # beyond the centre of the second cell, at 5.5, the fourth class rises
    assert torch.equal(classes_of(logits, (12, 12))[0], expected.to(torch.uint8))


def test_single_class_is_everywhere_and_has_no_loss():
    logits = logits_of((4, 4), classes=1)
    assert not classes_of(logits, (16, 16)).any()
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    assert float(loss_sum("cross_entropy", logits, labels, 0.0)) == 0


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
def test_void_pixels_alone_have_no_loss(kind):
    void = torch.full((2, 16, 16), IGNORE, dtype=torch.uint8)
    assert float(loss_sum(kind, logits_of((4, 4)), void, 2.0)) == 0


def test_memory_layout_precision_and_batch_change_nothing():
    logits, labels = logits_of((8, 16)).bfloat16(), labels_of((32, 64))
    whole, loss = classes_of(logits, (32, 64)), loss_sum("cross_entropy", logits, labels, 0.0)
    planar = logits.float().contiguous()
    assert torch.equal(classes_of(planar, (32, 64)), whole)
    assert torch.equal(loss_sum("cross_entropy", planar, labels, 0.0), loss)
    alone = [loss_sum("cross_entropy", logits[i : i + 1], labels[i : i + 1].long(), 0.0) for i in range(2)]
    assert float(sum(alone)) == pytest.approx(float(loss), rel=1e-12)


def test_nan_logit_gives_a_nan_loss_and_a_valid_class():
    logits = logits_of((4, 4))
    logits[0, 2, 1, 1] = torch.nan
    assert classes_of(logits, (16, 16)).max() < 5
    assert torch.isnan(loss_sum("cross_entropy", logits, labels_of((16, 16)), 0.0))


def test_logits_with_gradients_are_scored_without():
    logits = logits_of((4, 4)).requires_grad_()
    assert classes_of(logits, (16, 16)).shape == (2, 16, 16)
    assert not loss_sum("cross_entropy", logits, labels_of((16, 16)), 0.0).requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_same():
    logits, labels = logits_of((16, 32)), labels_of((64, 128))
    for kind in ("cross_entropy", "focal"):
        classes, on_gpu = classes_and_loss_sum(kind, logits.cuda(), labels.cuda(), 2.0)
        assert torch.equal(classes.cpu(), classes_of(logits, (64, 128)))
        assert float(on_gpu) == pytest.approx(float(loss_sum(kind, logits, labels, 2.0)), rel=1e-6)
