"""Label losses of training and evaluation.

Shapes: B batch, C classes, H/W pixels of the label, P = B * H * W.
Losses are means over valid pixels, so that their scale depends neither on batch, nor crop, nor void pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.formats.classes import IGNORE


def label_loss_sum(kind: str, nll: Tensor, focal_gamma: float) -> Tensor:
    """Return the label loss that params name, cross_entropy or focal, summed over the pixels.

    `nll` is -log p of each pixel's class, of any shape, 0 where the pixel is void. Focal loss is -(1 - p)^gamma log p
    (Lin et al., arXiv:1708.02002, without alpha).
    """
    assert kind in ("cross_entropy", "focal"), kind
    if kind == "cross_entropy" or not focal_gamma:
        return nll.sum()
    return ((-torch.expm1(-nll)).clamp(min=0) ** focal_gamma * nll).sum()


def label_loss(kind: str, logits_BCHW: Tensor, labels_BHW: Tensor, focal_gamma: float) -> Tensor:
    """Return the label loss that params name, mean over valid pixels; 0 (with zero gradient) if all pixels are void."""
    # Pixels are rows, as channels-last memory has them: a softmax over the second of four dimensions copies the logits
    # there and back. Summed separately, because on a GPU the kernel of cross_entropy sums in no fixed order.
    rows_PC = logits_BCHW.float().permute(0, 2, 3, 1).flatten(0, 2)
    nll_P = F.cross_entropy(rows_PC, labels_BHW.flatten(), ignore_index=IGNORE, reduction="none")
    return label_loss_sum(kind, nll_P, focal_gamma) / (labels_BHW != IGNORE).sum().clamp(min=1)
