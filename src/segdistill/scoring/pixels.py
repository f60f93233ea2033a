"""From logits on the net's own grid to the class and the loss of every pixel, without ever holding full-size logits.

Logits at full size are 160 MB for one frame of 1024x2048: writing and rereading them costs more than the arithmetic. On
a CPU they are therefore made a strip of rows at a time, small enough for the processor's cache, and used up there.

Shapes: B batch, C classes, h/w cells of the net's own grid, H/W pixels of the frame, R rows of a strip.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.nets.losses import IGNORE, label_loss_sum
from segdistill.nets.resize import upsample

STRIP_BYTES = 4 * 2**20


@torch.inference_mode()
def classes_of(logits_BChw: Tensor, size_px: tuple[int, int]) -> Tensor:
    """The class with the largest upsampled logit at each pixel, the first of equals: uint8 (B, H, W).

    Equal to the argmax of `upsample`, but where two logits are so close that the rounding of float32 decides.
    """
    classes_BHW = _empty_classes(logits_BChw, size_px)
    for frame, rows, strip_CRW in _strips(logits_BChw, size_px):
        classes_BHW[frame, rows] = _first_of_largest(strip_CRW)
    return classes_BHW


@torch.inference_mode()
def loss_sum(kind: str, logits_BChw: Tensor, labels_BHW: Tensor, focal_gamma: float) -> Tensor:
    """The sum over the valid pixels of the label loss `kind` of upsampled logits, a float64 scalar on their device.

    `labels_BHW` is uint8 or int64, on the device of the logits.
    """
    total = logits_BChw.new_zeros((), dtype=torch.float64)
    for frame, rows, strip_CRW in _strips(logits_BChw, tuple(labels_BHW.shape[1:])):
        total += label_loss_sum(kind, _nll(strip_CRW, labels_BHW[frame, rows]), focal_gamma)
    return total


@torch.inference_mode()
def classes_and_loss_sum(
    kind: str, logits_BChw: Tensor, labels_BHW: Tensor, focal_gamma: float
) -> tuple[Tensor, Tensor]:
    """Both `classes_of` and `loss_sum`, from one upsampling."""
    classes_BHW = _empty_classes(logits_BChw, labels_BHW.shape[1:])
    total = logits_BChw.new_zeros((), dtype=torch.float64)
    for frame, rows, strip_CRW in _strips(logits_BChw, tuple(labels_BHW.shape[1:])):
        classes_BHW[frame, rows] = _first_of_largest(strip_CRW)
        total += label_loss_sum(kind, _nll(strip_CRW, labels_BHW[frame, rows]), focal_gamma)
    return classes_BHW, total


def _empty_classes(logits_BChw: Tensor, size_px: tuple[int, int]) -> Tensor:
    return logits_BChw.new_empty((len(logits_BChw), *size_px), dtype=torch.uint8)


def _strips(logits_BChw: Tensor, size_px: tuple[int, int]) -> Iterator[tuple[int, slice, Tensor]]:
    """(frame, its rows, their upsampled logits float32 (C, R, W)), frame by frame and from top to bottom."""
    (_, classes, cells, _), (height_px, width_px) = logits_BChw.shape, size_px
    if logits_BChw.device.type != "cpu":  # a GPU has the bandwidth, and launching many small kernels would cost more
        for frame, logits_Chw in enumerate(logits_BChw.float()):
            yield frame, slice(0, height_px), upsample(logits_Chw[None], size_px)[0]
        return
    rows_per_strip = max(1, STRIP_BYTES // (4 * classes * width_px))
    weights_Hh = _row_weights(cells, height_px)
    for frame, logits_Chw in enumerate(logits_BChw.float()):
        for top in range(0, height_px, rows_per_strip):
            rows = slice(top, min(top + rows_per_strip, height_px))
            used = weights_Hh[rows].any(0).nonzero().flatten()
            cells_used = slice(int(used[0]), int(used[-1]) + 1)
            # Planar memory, whatever the net's own layout: then all that follows runs along rows of pixels.
            wide_CrW = F.interpolate(logits_Chw[:, cells_used].contiguous(), size=width_px, mode="linear")
            yield frame, rows, weights_Hh[rows, cells_used] @ wide_CrW


@lru_cache(maxsize=8)
def _row_weights(cells: int, height_px: int) -> Tensor:
    """What each of `cells` rows weighs in each row of pixels, float32 (H, h): two weights a row, 0 elsewhere.

    They are read off torch's own interpolation, of unit vectors, so that they are the same numbers.
    """
    return F.interpolate(torch.eye(cells)[None], size=height_px, mode="linear")[0].T.contiguous()


def _nll(strip_CRW: Tensor, labels_RW: Tensor) -> Tensor:
    """-log softmax of each pixel's class, 0 where it is void, (R, W).

    Written out: in planar memory this takes a tenth of the time of torch's own, which makes rows of pixels first.
    """
    below_CRW = strip_CRW - strip_CRW.amax(0)
    void_RW = labels_RW == IGNORE
    true_1RW = below_CRW.gather(0, labels_RW.long().masked_fill(void_RW, 0)[None])
    return below_CRW.exp_().sum(0).log_().sub_(true_1RW[0]).masked_fill_(void_RW, 0)


def _first_of_largest(strip_CRW: Tensor) -> Tensor:
    """Argmax over C, uint8 (R, W). On a CPU torch's own, along any axis but the last, takes over ten times as long."""
    if strip_CRW.device.type != "cpu":
        return strip_CRW.argmax(0).to(torch.uint8)
    largest_RW = strip_CRW.amax(0)
    # NumPy compares with vector instructions, and what follows is on bytes.
    rank_CRW = np.equal(strip_CRW.numpy(), largest_RW.numpy()).view(np.uint8)
    classes = len(rank_CRW)
    rank_CRW *= np.arange(classes, 0, -1, dtype=np.uint8)[:, None, None]
    # Where a logit is not a number none is the largest; the last class stands for that.
    return torch.from_numpy(np.minimum(classes - rank_CRW.max(0), classes - 1))
