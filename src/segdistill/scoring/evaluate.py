"""One evaluation for every engine: a torch net and an ONNX session go through the same lines.

Shapes: B batch, H/W frame in pixels, h/w the net's own grid, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.frames.dataset import Split
from segdistill.frames.mapped import release, will_read
from segdistill.frames.transforms import normalised
from segdistill.nets.compute import Compute
from segdistill.nets.losses import IGNORE
from segdistill.scoring.pixels import classes_and_loss_sum, classes_of, loss_sum
from segdistill.scoring.scores import Confusion


class Predictor(Protocol):
    """uint8 frames (B, H, W, 3) -> logits (B, C, h, w) on the net's own grid, and classes uint8 (B, H, W)."""

    def __call__(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]: ...


class TorchPredictor:
    """A net in eval mode, as a Predictor."""

    def __init__(self, net: nn.Module, compute: Compute) -> None:
        self.net, self.compute = compute.place(net).eval(), compute

    @torch.inference_mode()
    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """What the net says, float32 (B, C, h, w) on its own grid."""
        inputs = normalised(torch.from_numpy(images_BHW3).to(self.compute.device))
        with self.compute.autocast():
            logits = self.net(inputs)
        return logits.float()

    def __call__(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        logits = self.logits(images_BHW3)
        return logits, classes_of(logits, images_BHW3.shape[1:3])


class Evaluation(NamedTuple):
    """figures: flat keys as in the metrics files; classes: uint8 (H, W) of the frames asked for, by index."""

    figures: dict
    classes: dict[int, np.ndarray]


def spread(frames: int, count: int) -> list[int]:
    """`count` frame indices (all, where there are fewer), evenly spread: chosen by rule, not by hand."""
    count = min(count, frames)
    return sorted({(2 * i + 1) * frames // (2 * count) for i in range(count)})


@torch.inference_mode()
def evaluate(
    predict: Predictor,
    split: Split,
    classes: int,
    batch_size: int,
    *,
    loss_kind: str = "cross_entropy",
    focal_gamma: float = 0.0,
    teacher_classes: Callable[[int], np.ndarray] | None = None,
    keep: list[int] | None = None,
    on_frame: Callable[[int, np.ndarray, np.ndarray], None] | None = None,
) -> Evaluation:
    """Predict every frame of `split` and score it.

    Args:
        teacher_classes: gives the teacher's class map uint8 (H, W) of frame i; adds `teacher_agreement`, the share of
            all pixels on which the two name the same class.
        keep: indices of frames whose class maps are returned.
        on_frame: called with (i, classes uint8 (H, W), pixel counts int64 (C, C)) for each frame, in order; a row of
            the counts is a true class, a column a predicted one.
    """
    confusion, total_loss, valid, agreeing, pixels = Confusion(classes), 0.0, 0, 0, 0
    kept: dict[int, np.ndarray] = {}
    for start, images, labels in _batches(split, batch_size):
        predicted, targets, batch_loss = _predicted(predict, images, labels, loss_kind, focal_gamma)
        total_loss = total_loss + batch_loss  # on the device: nothing waits for it
        valid += np.count_nonzero(labels != IGNORE)
        for offset, frame_classes in enumerate(predicted.cpu().numpy()):
            index = start + offset
            counts = confusion.add(predicted[offset], targets[offset])
            if teacher_classes is not None:
                agreeing += np.count_nonzero(frame_classes == teacher_classes(index))
                pixels += frame_classes.size
            if keep and index in keep:
                kept[index] = frame_classes
            if on_frame is not None:
                on_frame(index, frame_classes, counts.numpy())
    figures = {"mean_loss": float(total_loss) / valid if valid else None, **confusion.figures()}
    if teacher_classes is not None:
        figures["teacher_agreement"] = agreeing / pixels
    return Evaluation(figures, kept)


def _predicted(
    predict: Predictor, images: np.ndarray, labels: np.ndarray, loss_kind: str, focal_gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(classes, labels, sum of the loss over the valid pixels) of a batch, where the predictor computes."""
    targets = torch.from_numpy(labels)
    if isinstance(predict, TorchPredictor):
        logits = predict.logits(images)
        targets = targets.to(logits.device)
        classes, loss = classes_and_loss_sum(loss_kind, logits, targets, focal_gamma)
    else:  # its classes are its own, as those that an ONNX graph gives
        logits, classes = predict(images)
        targets = targets.to(logits.device)
        loss = loss_sum(loss_kind, logits, targets, focal_gamma)
    return classes, targets, loss


def _batches(split: Split, batch_size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index of the first frame, images, labels) of each batch, copied: memory does not grow with the split."""
    arrays = split.images, split.labels
    for start in range(0, len(split), batch_size):
        images, labels = (np.array(array[start : start + batch_size]) for array in arrays)
        following = np.arange(start + batch_size, min(start + 2 * batch_size, len(split)))
        for array in arrays:
            release(array)
            # The system fetches the next batch from the disk while this one is computed.
            will_read(array, following, np.zeros_like(following), split.size_px[0])
        yield start, images, labels
