"""Label losses and distillation losses.

Shapes: B batch, C classes, H/W pixels of the label, P = B * H * W, h/w cells of the logits' own grid.
All losses are means, so that their scale depends neither on the batch, nor on the crop, nor on how much is void.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255


def _valid_pixels(labels_BHW: Tensor) -> Tensor:
    return (labels_BHW != IGNORE).sum().clamp(min=1)


def _nll(logits_BCHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """-log softmax of each pixel's class, 0 where it is void, (P,).

    Pixels are rows: channels-last logits are used as they lie, where a softmax over the second of four dimensions
    copies them there and back. Summed by torch, not by the kernel, which on a GPU would do it in no fixed order.
    """
    rows_PC = logits_BCHW.float().permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(rows_PC, labels_BHW.flatten(), ignore_index=IGNORE, reduction="none")


def label_loss_sum(kind: str, nll: Tensor, focal_gamma: float) -> Tensor:
    """The label loss named in params, cross_entropy or focal, summed over the pixels.

    `nll` is -log p of each pixel's class, of any shape, 0 where the pixel is void. Focal loss is -(1 - p)^gamma log p
    (Lin et al., arXiv:1708.02002, without alpha).
    """
    assert kind in ("cross_entropy", "focal"), kind
    if kind == "cross_entropy" or not focal_gamma:
        return nll.sum()
    return ((-torch.expm1(-nll)).clamp(min=0) ** focal_gamma * nll).sum()


def label_loss(kind: str, logits_BCHW: Tensor, labels_BHW: Tensor, focal_gamma: float) -> Tensor:
    """The label loss named in params, mean over the valid pixels; 0 (with zero gradient) where every pixel is void."""
    return label_loss_sum(kind, _nll(logits_BCHW, labels_BHW), focal_gamma) / _valid_pixels(labels_BHW)


def kl(student_BChw: Tensor, teacher_BChw: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the class distribution of each pixel at temperature T, mean over pixels.

    Hinton et al., arXiv:1503.02531, applied pixel by pixel (Liu et al., arXiv:1903.04197).
    """
    student = F.log_softmax(student_BChw.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_BChw.float() / temperature, dim=1)
    pixels = student.numel() // student.shape[1]
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / pixels


def channel_kl(student_BChw: Tensor, teacher_BChw: Tensor, temperature: float) -> Tensor:
    """KL of each class map, taken as a distribution over places, mean over classes (Shu et al., arXiv:2011.13256)."""
    student = F.log_softmax(student_BChw.float().flatten(2) / temperature, dim=2)
    teacher = F.log_softmax(teacher_BChw.float().flatten(2) / temperature, dim=2)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / (student.shape[0] * student.shape[1])


def sigmoid_kl(student_BChw: Tensor, teacher_BChw: Tensor, temperature: float, clamp: float = 10.0) -> Tensor:
    """KL between softmaxes over all classes and places of an image, of the sigmoid of the clamped logits.

    The loss of the light-student source, which used T = 0.01; mean over images.
    """

    def log_distribution(logits: Tensor) -> Tensor:
        score = torch.sigmoid(logits.float().clamp(-clamp, clamp))
        return F.log_softmax(score.flatten(1) / temperature, dim=1)

    student, teacher = log_distribution(student_BChw), log_distribution(teacher_BChw)
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / student.shape[0]


DISTILLATION = {"kl": kl, "channel_kl": channel_kl, "sigmoid_kl": sigmoid_kl}


def mixed(label: Tensor, distillation: Tensor | None, alpha: float, temperature: float) -> Tensor:
    """(1 - alpha) * label + alpha * T^2 * distillation; the label loss alone for a control (distillation None)."""
    if distillation is None:
        return label
    return (1 - alpha) * label + alpha * temperature**2 * distillation
