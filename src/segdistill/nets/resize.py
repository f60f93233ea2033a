"""Bilinear resizing of logits and images, with half-pixel centres everywhere (align_corners=False).

Shapes: B batch, C classes, h/w at the network's native stride, H/W pixels.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(logits_BChw: Tensor, size_px: tuple[int, ...]) -> Tensor:
    """Return logits_BCHW of `size_px` = (H, W)."""
    # On CUDA torch's own kernel adds its gradient up in no fixed order. Where results are to repeat, F.interpolate runs
    # a chain of elementwise operations instead, 7 times as slow on a CPU; two matrix products take 1.4 times as long.
    if logits_BChw.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return upsample_by_matrices(logits_BChw, size_px)
    return F.interpolate(logits_BChw, size=size_px, mode="bilinear", align_corners=False)


def upsample_by_matrices(logits_BChw: Tensor, size_px: tuple[int, ...]) -> Tensor:
    """Return what `F.interpolate` returns up to rounding, logits_BCHW in channels-last memory, as two matrix products.

    Their gradient is a matrix product too, which adds up in a fixed order. In bfloat16 the rows are rounded before the
    columns are resized.
    """
    (batch, channels, h, w), (height, width) = logits_BChw.shape, size_px
    # The compiler traces the function that makes a matrix, and could not trace its cache.
    matrix = _resize_matrix if torch.compiler.is_compiling() else _kept_resize_matrix
    like = logits_BChw.device, logits_BChw.dtype
    across, down = matrix(w, width, *like), matrix(h, height, *like)
    with torch.autocast(logits_BChw.device.type, enabled=False):  # it would round float32 logits
        rows_BhwC = logits_BChw.permute(0, 2, 3, 1).reshape(batch * h, w, channels)
        # Along x first: the larger product is then one of large matrices.
        wide = torch.bmm(across.expand(batch * h, -1, -1), rows_BhwC).view(batch, h, width * channels)
        out = torch.bmm(down.expand(batch, -1, -1), wide).view(batch, height, width, channels)
    return out.permute(0, 3, 1, 2)


def _resize_matrix(cells: int, pixels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the weight of each cell of a row in each of its pixels, (pixels, cells): at most two are not 0."""
    # Rounded to float32 where torch's kernels round: in long rows other weights would differ from theirs by 1e-5.
    scale = (torch.full((), cells, dtype=torch.float32, device=device) / pixels).double()
    places = torch.arange(pixels, dtype=torch.float64, device=device)
    source = ((places + 0.5) * scale - 0.5).float().clamp(0, cells - 1)
    distance = (source[:, None] - torch.arange(cells, dtype=torch.float32, device=device)).abs()
    return (1 - distance).clamp(min=0).to(dtype)


@lru_cache(maxsize=64)
def _kept_resize_matrix(cells: int, pixels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Evaluations run in inference mode, whose tensors autograd could not use afterwards.
    with torch.inference_mode(False):
        return _resize_matrix(cells, pixels, device, dtype)


def resize_images(images_BHW3: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """Return uint8 images of `size_px`; where they shrink every pixel counts (antialias), as Pillow does in prepare."""
    planes = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=size_px, mode="bilinear", align_corners=False, antialias=True)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
