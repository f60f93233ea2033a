"""The confusion matrix and every metric that follows from it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segdistill.formats.classes import IGNORE


class Confusion:
    """Count pixels, int64 (C, C): row = true class, column = predicted class; void pixels are left out."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Count `predicted` against `labels`, uint8 or int64 of one shape on one device; return these counts."""
        # A row for each value of a byte, void included: pairs fit in 16 bits, and void is dropped afterwards.
        pair_dtype = torch.int16 if 256 * self.classes < 2**15 else torch.int32
        pairs = labels.flatten().to(pair_dtype, copy=True).mul_(self.classes).add_(predicted.flatten())
        counts = torch.bincount(pairs, minlength=256 * self.classes).reshape(256, -1).cpu()
        assert not counts[self.classes : IGNORE].any(), "a label that is neither a class nor void"
        counts = counts[: self.classes]
        self.counts += counts
        return counts

    def metrics(self) -> dict:
        """Return overall_acc, mean_acc, freqw_acc, mean_iou and class_iou.

        As in the official evaluator, a class that neither occurs nor is predicted has no IoU (None) and is left out of
        the mean; one that is predicted without occurring has IoU 0. Recall is a mean over the classes that occur.
        """
        counts = self.counts.double().numpy()
        hits, truth, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        union = truth + predicted - hits
        total = truth.sum()
        with np.errstate(invalid="ignore"):
            iou, recall = hits / union, hits / truth
        return {
            "overall_acc": float(hits.sum() / total) if total else None,
            "mean_acc": _mean(recall[truth > 0]),
            "freqw_acc": float((truth[truth > 0] * iou[truth > 0]).sum() / total) if total else None,
            "mean_iou": _mean(iou[union > 0]),
            "class_iou": [float(value) if there else None for value, there in zip(iou, union > 0, strict=True)],
        }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None
