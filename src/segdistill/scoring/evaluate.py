"""Score predictions: classes and loss of every pixel, for a torch network and an ONNX session alike.

Logits at full size are 160 MB for one frame of 1024x2048: writing and rereading them costs more than the arithmetic. So
on a CPU this computes them a strip of rows at a time, small enough for the processor's cache, and uses them there. It
takes 1.10 times a bare forward, with metrics, loss and agreement; at full size 1.29 times (benchmarks/evaluation.py).

Shapes: B batch, H/W frame in pixels, h/w the network's own grid, C classes, R rows of a strip.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.data.arrays import drop_pages, prefetch
from segdistill.data.prepared import Split
from segdistill.data.transfer import to_device
from segdistill.formats.classes import IGNORE
from segdistill.nets.resize import upsample
from segdistill.parallel import ranks
from segdistill.params.model import TrainingParams
from segdistill.scoring.confusion import Confusion
from segdistill.scoring.label_losses import label_loss_sum

STRIP_BYTES = 4 * 2**20


class Predictor(Protocol):
    """Gives logits on the network's own grid."""

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return float32 (B, C, h, w) of uint8 images (B, H, W, 3)."""


@runtime_checkable
class ClassPredictor(Protocol):
    """Gives class maps too, as an ONNX graph does."""

    def logits_and_classes(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return logits (B, C, h, w) and classes uint8 (B, H, W)."""


class LabelLoss(NamedTuple):
    """The label loss that an evaluation reports, mean over valid pixels."""

    kind: str = "cross_entropy"
    focal_gamma: float = 0.0

    @classmethod
    def of(cls, settings: TrainingParams) -> LabelLoss:
        """Return what is reported of a network that was trained by `settings`: focal loss, or plain cross entropy.

        Hard pixels and class weights are means to train by. Without them the loss compares with that of other runs.
        """
        return cls("focal", settings.focal_gamma) if settings.label_loss == "focal" else cls()


class Evaluation(NamedTuple):
    """Metrics by flat key, as in the metrics files, and the class maps uint8 (H, W) of the kept frames, by index."""

    metrics: dict
    classes: dict[int, np.ndarray]


def evenly_spaced(frames: int, count: int) -> list[int]:
    """Return `count` evenly spaced frame indices (all, where there are fewer): chosen by rule, not by hand."""
    count = min(count, frames)
    return sorted({(2 * i + 1) * frames // (2 * count) for i in range(count)})


@torch.inference_mode()
def evaluate(
    predictor: Predictor | ClassPredictor,
    split: Split,
    classes: int,
    batch_size: int,
    *,
    loss: LabelLoss | None = None,
    teacher_classes: Callable[[int], np.ndarray] | None = None,
    keep: list[int] | None = None,
    on_frame: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> Evaluation:
    """Predict every frame of `split` and score it.

    With several ranks each predicts its part of the batches, and the first one gathers what one process has: it alone
    calls the functions of its caller and returns class maps, and the metrics are the same on all.

    Args:
        loss: what to report as `mean_loss`; cross entropy by default.
        teacher_classes: gives the teacher's class map uint8 (H, W) of frame i; adds `teacher_agreement`, the share of
            all pixels on which the two name the same class.
        keep: indices of frames whose class maps are returned.
        on_frame: called with (i, classes uint8 (H, W), pixel counts int64 (C, C)) for each frame, in order; a row of
            the counts is a true class, a column a predicted one.
    """
    loss = loss or LabelLoss()
    confusion, valid, agreeing, pixels = Confusion(classes), 0, 0, 0
    total_loss: float | Tensor = 0.0
    kept: dict[int, np.ndarray] = {}
    scored = _scored(predictor, split, classes, batch_size, loss)
    for start, batch_loss, batch_valid, class_maps, counts in ranks.in_order(scored, -(-len(split) // batch_size)):
        total_loss = total_loss + batch_loss
        valid += batch_valid
        for index, (frame_classes, counts_CC) in enumerate(zip(class_maps, counts, strict=True), start):
            confusion.counts += counts_CC
            if teacher_classes is not None:
                agreeing += int(np.count_nonzero(frame_classes == teacher_classes(index)))
                pixels += frame_classes.size
            if keep and index in keep:
                kept[index] = frame_classes
            if on_frame is not None:
                on_frame(index, frame_classes, counts_CC.numpy())

    def metrics() -> dict:
        found = {"mean_loss": float(total_loss) / valid if valid else None, **confusion.metrics()}
        return found if teacher_classes is None else found | {"teacher_agreement": agreeing / pixels}

    return Evaluation(ranks.by_first(metrics), kept)


def _scored(
    predictor: Predictor | ClassPredictor, split: Split, classes: int, batch_size: int, loss: LabelLoss
) -> Iterator[tuple[int, Tensor, int, np.ndarray, list[Tensor]]]:
    """Yield of each of the rank's batches: first frame, loss sum, valid pixels, class maps (B, H, W), counts (C, C)."""
    confusion = Confusion(classes)
    for start, images, labels in _batches(split, batch_size):
        targets = torch.from_numpy(labels)
        if isinstance(predictor, ClassPredictor):
            logits, predicted = predictor.logits_and_classes(images)
            targets = to_device(targets, logits.device)
            batch_loss = loss_sum(loss.kind, logits, targets, loss.focal_gamma)
        else:
            logits = predictor.logits(images)
            targets = to_device(targets, logits.device)
            predicted, batch_loss = classes_and_loss_sum(loss.kind, logits, targets, loss.focal_gamma)
        counts = [confusion.add(*frame) for frame in zip(predicted, targets, strict=True)]
        yield start, batch_loss.cpu(), int(np.count_nonzero(labels != IGNORE)), predicted.cpu().numpy(), counts


def _batches(split: Split, batch_size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (index of the first frame, images, labels) of each of the rank's batches.

    They are copied: memory does not grow with the split.
    """
    arrays, starts = (split.images, split.labels), ranks.own(range(0, len(split), batch_size))
    for start, next_start in itertools.zip_longest(starts, starts[1:], fillvalue=len(split)):
        images, labels = (np.array(array[start : start + batch_size]) for array in arrays)
        following = np.arange(next_start, min(next_start + batch_size, len(split)))
        for array in arrays:
            drop_pages(array)
            # The kernel reads the next batch while this one is computed.
            prefetch(array, following, np.zeros_like(following), split.size_px[0])
        yield start, images, labels


@torch.inference_mode()
def classes_of(logits_BChw: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Return the class with the largest upsampled logit at each pixel, the first of equals: uint8 (B, H, W).

    This is the argmax of `upsample`, except where two logits are so close that the rounding of float32 decides.
    """
    classes_BHW = _empty_classes(logits_BChw, size_px)
    for frame, rows, strip_CRW in _strips(logits_BChw, size_px):
        classes_BHW[frame, rows] = _first_of_largest(strip_CRW)
    return classes_BHW


@torch.inference_mode()
def loss_sum(kind: str, logits_BChw: Tensor, labels_BHW: Tensor, focal_gamma: float) -> Tensor:
    """Return the label loss `kind` of upsampled logits, summed over valid pixels, a float64 scalar on their device.

    `labels_BHW` is uint8 or int64, on the device of the logits.
    """
    total = logits_BChw.new_zeros((), dtype=torch.float64)
    for frame, rows, strip_CRW in _strips(logits_BChw, labels_BHW.shape[1:]):
        total += label_loss_sum(kind, _nll(strip_CRW, labels_BHW[frame, rows]), focal_gamma)
    return total


@torch.inference_mode()
def classes_and_loss_sum(
    kind: str, logits_BChw: Tensor, labels_BHW: Tensor, focal_gamma: float
) -> tuple[Tensor, Tensor]:
    """Return both `classes_of` and `loss_sum`, from one upsampling."""
    classes_BHW = _empty_classes(logits_BChw, labels_BHW.shape[1:])
    total = logits_BChw.new_zeros((), dtype=torch.float64)
    for frame, rows, strip_CRW in _strips(logits_BChw, labels_BHW.shape[1:]):
        classes_BHW[frame, rows] = _first_of_largest(strip_CRW)
        total += label_loss_sum(kind, _nll(strip_CRW, labels_BHW[frame, rows]), focal_gamma)
    return classes_BHW, total


def _empty_classes(logits_BChw: Tensor, size_px: tuple[int, ...]) -> Tensor:
    return logits_BChw.new_empty((len(logits_BChw), *size_px), dtype=torch.uint8)


def _strips(logits_BChw: Tensor, size_px: tuple[int, ...]) -> Iterator[tuple[int, slice, Tensor]]:
    """Yield (frame, its rows, their upsampled logits float32 (C, R, W)), frame by frame, from top to bottom."""
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
            # Planar memory, so that all that follows runs along rows of pixels.
            wide_CrW = F.interpolate(logits_Chw[:, cells_used].contiguous(), size=width_px, mode="linear")
            yield frame, rows, weights_Hh[rows, cells_used] @ wide_CrW


@lru_cache(maxsize=8)
def _row_weights(cells: int, height_px: int) -> Tensor:
    """Return the weight of each of `cells` rows in each row of pixels, float32 (H, h): two per row, 0 elsewhere.

    Torch interpolates unit vectors, so that the weights are the very numbers of its own interpolation.
    """
    return F.interpolate(torch.eye(cells)[None], size=height_px, mode="linear")[0].T.contiguous()


def _nll(strip_CRW: Tensor, labels_RW: Tensor) -> Tensor:
    """Return -log softmax of each pixel's class, 0 where it is void, (R, W).

    Own code: in planar memory it takes a tenth of the time of torch's cross entropy, which first makes rows of pixels.
    """
    below_CRW = strip_CRW - strip_CRW.amax(0)
    void_RW = labels_RW == IGNORE
    true_1RW = below_CRW.gather(0, labels_RW.long().masked_fill(void_RW, 0)[None])
    return below_CRW.exp_().sum(0).log_().sub_(true_1RW[0]).masked_fill_(void_RW, 0)


def _first_of_largest(strip_CRW: Tensor) -> Tensor:
    """Return the argmax over C, uint8 (R, W). On a CPU torch's own is over ten times slower along this axis."""
    if strip_CRW.device.type != "cpu":
        return strip_CRW.argmax(0).to(torch.uint8)
    largest_RW = strip_CRW.amax(0)
    # NumPy compares with vector instructions, and what follows is on bytes.
    rank_CRW = np.equal(strip_CRW.numpy(), largest_RW.numpy()).view(np.uint8)
    classes = len(rank_CRW)
    rank_CRW *= np.arange(classes, 0, -1, dtype=np.uint8)[:, None, None]
    # Where a logit is NaN no logit equals the largest; name the last class there.
    return torch.from_numpy(np.minimum(classes - rank_CRW.max(0), classes - 1))
