"""From a network's own resolution to pixels.

Shapes: B batch, C classes, h/w at the network's native stride, H/W pixels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def upsample(logits_BChw: Tensor, size_px: tuple[int, int]) -> Tensor:
    """Bilinear logits_BCHW of `size_px` = (H, W); half-pixel centres, as every source of this project resizes."""
    return F.interpolate(logits_BChw, size=size_px, mode="bilinear", align_corners=False)
