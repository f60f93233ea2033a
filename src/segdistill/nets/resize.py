"""Bilinear resizing of logits and images, with half-pixel centres everywhere (align_corners=False).

Shapes: B batch, C classes, h/w at the network's native stride, H/W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(logits_BChw: Tensor, size_px: tuple[int, ...]) -> Tensor:
    """Return logits_BCHW of `size_px` = (H, W)."""
    return F.interpolate(logits_BChw, size=size_px, mode="bilinear", align_corners=False)


def resize_images(images_BHW3: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Return uint8 images of `size_px`; where they shrink every pixel counts (antialias), as Pillow does in prepare."""
    planes = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=size_px, mode="bilinear", align_corners=False, antialias=True)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
