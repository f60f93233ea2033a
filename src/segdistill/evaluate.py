"""One evaluation for every engine: a torch net and an ONNX session go through the same lines.

Shapes: B batch, H/W frame in pixels, h/w the net's own grid, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.compute import Compute
from segdistill.dataset import Split
from segdistill.losses import IGNORE, label_loss
from segdistill.nets.resize import upsample
from segdistill.scores import Confusion
from segdistill.transforms import normalised


class Predictor(Protocol):
    """uint8 frames (B, H, W, 3) -> logits (B, C, h, w) on the net's own grid, and classes uint8 (B, H, W)."""

    def __call__(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]: ...


class TorchPredictor:
    """A net in eval mode, as a Predictor."""

    def __init__(self, net: nn.Module, compute: Compute) -> None:
        self.net, self.compute = compute.place(net).eval(), compute

    @torch.inference_mode()
    def __call__(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        inputs = normalised(torch.from_numpy(images_BHW3).to(self.compute.device))
        with self.compute.autocast():
            logits = self.net(inputs)
        logits = logits.float()
        return logits, upsample(logits, inputs.shape[-2:]).argmax(1).to(torch.uint8)


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
    on_classes: Callable[[int, np.ndarray], None] | None = None,
) -> Evaluation:
    """Predict every frame of `split` and score it.

    Args:
        teacher_classes: gives the teacher's class map uint8 (H, W) of frame i; adds `teacher_agreement`, the share of
            all pixels on which the two name the same class.
        keep: indices of frames whose class maps are returned.
        on_classes: called with (i, classes uint8 (H, W)) for each frame, in order.
    """
    confusion, loss_sum, valid, agreeing, pixels = Confusion(classes), 0.0, 0, 0, 0
    kept: dict[int, np.ndarray] = {}
    for start in range(0, len(split), batch_size):
        images = np.array(split.images[start : start + batch_size])
        labels = torch.from_numpy(np.array(split.labels[start : start + batch_size]))
        logits, predicted = predict(images)
        confusion.add(predicted.cpu(), labels)
        targets = labels.to(logits.device).long()
        here = int((labels != IGNORE).sum())
        loss_sum += (
            here * label_loss(loss_kind, upsample(logits, targets.shape[-2:]), targets, focal_gamma).double().item()
        )
        valid += here
        for offset, frame_classes in enumerate(predicted.cpu().numpy()):
            index = start + offset
            if teacher_classes is not None:
                agreeing += int((frame_classes == teacher_classes(index)).sum())
                pixels += frame_classes.size
            if keep and index in keep:
                kept[index] = frame_classes
            if on_classes is not None:
                on_classes(index, frame_classes)
    figures = {"mean_loss": loss_sum / valid if valid else None, **confusion.figures()}
    if teacher_classes is not None:
        figures["teacher_agreement"] = agreeing / pixels
    return Evaluation(figures, kept)
