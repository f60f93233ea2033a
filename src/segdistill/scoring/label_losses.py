"""Label losses of training and evaluation.

Shapes: B batch, C classes, H/W pixels of the label, P = B * H * W.
Losses are means over pixels, so that their scale depends neither on batch, nor crop, nor void pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.formats.classes import IGNORE
from segdistill.parallel import ranks
from segdistill.params.model import TrainingParams


def label_loss_sum(kind: str, nll: Tensor, focal_gamma: float) -> Tensor:
    """Return the label loss of a kind, cross_entropy or focal, summed over the pixels.

    `nll` is -log p of each pixel's class, of any shape, 0 where the pixel is void.
    """
    return pixel_losses(kind, nll, focal_gamma).sum()


def pixel_losses(kind: str, nll: Tensor, focal_gamma: float) -> Tensor:
    """Return the loss of each pixel. Focal loss is -(1 - p)^gamma log p (Lin et al., arXiv:1708.02002, no alpha)."""
    assert kind in ("cross_entropy", "focal"), kind
    if kind == "cross_entropy" or not focal_gamma:
        return nll
    return (-torch.expm1(-nll)).clamp(min=0) ** focal_gamma * nll


def label_loss(
    settings: TrainingParams, logits_BCHW: Tensor, labels_BHW: Tensor, class_weights_C: Tensor | None = None
) -> Tensor:
    """Return the label loss that params name; 0 (with zero gradient) if all pixels are void.

    It is the mean over valid pixels, and with `ohem` over the hard ones of them. With `class_weights_C` it is a
    weighted mean, as that of torch's cross entropy: a pixel counts as much as the weight of its class.

    With several ranks the batch is that of all: the mean of their losses is the loss of the batch.
    """
    # Pixels are rows, as channels-last memory has them: a softmax over the second of four dimensions copies the logits
    # there and back. Summed separately, because on a GPU the kernel of cross_entropy sums in no fixed order.
    rows_PC = logits_BCHW.float().permute(0, 2, 3, 1).flatten(0, 2)
    labels_P = labels_BHW.flatten()
    nll_P = F.cross_entropy(rows_PC, labels_P, ignore_index=IGNORE, reduction="none")
    counted_P = labels_P != IGNORE
    is_ohem = settings.label_loss == "ohem"
    if is_ohem:
        counted_P &= hard_pixels(nll_P.detach(), settings.ohem_threshold, settings.ohem_min_share)
    loss_P = nll_P if is_ohem else pixel_losses(settings.label_loss, nll_P, settings.focal_gamma)
    if class_weights_C is not None:
        weights_P = class_weights_C[labels_P.masked_fill(~counted_P, 0)] * counted_P
        return (weights_P * loss_P).sum() / ranks.mean_count(weights_P.sum(), torch.finfo(weights_P.dtype).tiny)
    # Void pixels have loss 0 already.
    return (loss_P * counted_P if is_ohem else loss_P).sum() / ranks.mean_count(counted_P.sum(), 1)


def hard_pixels(nll_P: Tensor, threshold: float, min_share: float) -> Tensor:
    """Return which pixels online hard example mining keeps, bool (P,); void ones are not left out.

    Those whose class has a probability of at most `threshold`, and at least `min_share` of all pixels: where fewer are
    as hard, the hardest (Shrivastava et al., arXiv:1604.03540, as the public code of HRNet and PIDNet does it).
    With several ranks these are the pixels of all.
    """
    at_least = max(1, math.ceil(min_share * len(nll_P) * ranks.count()))
    hardest = nll_P.topk(min(at_least, len(nll_P)), sorted=False).values
    if ranks.count() > 1:  # those of the batch are among those of each rank
        hardest = ranks.joined(hardest).topk(at_least, sorted=False).values
    # Without waiting for a GPU: the smaller of both bounds keeps enough pixels.
    bound = hardest.min().clamp(max=-math.log(threshold))
    return nll_P >= bound


def inverse_log_weights(frequency_C: Tensor) -> Tensor:
    """Return the weight of each class by its share of the pixels, 1 / ln(1.02 + share) (ENet, arXiv:1606.02147)."""
    return 1 / torch.log(1.02 + frequency_C)
