"""Crops, flips and normalisation: one geometry for image, label and cached logits.

Shapes: B batch, H/W crop in pixels, h/w crop in logit cells (H / stride), C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segdistill.formats.header import MEAN, STD

_ELEMENTS_OF_ONE_THREAD = 32768  # at::internal::GRAIN_SIZE


def crop(
    source: np.ndarray,
    frames: np.ndarray,
    origins: np.ndarray,
    flips: np.ndarray,
    size: tuple[int, int],
    out: np.ndarray,
) -> np.ndarray:
    """Copy a crop of each of `frames` out of source (N, H, W, ...) into out (B, *size, ...), flipped where `flips` say.

    `origins` (B, 2) and `size` are in cells of `source`. Only the crops' own rows of a mapped array are read.
    """
    for slot, (frame, (top, left), flip) in enumerate(zip(frames, origins, flips, strict=True)):
        out[slot] = source[frame, top : top + size[0], left : left + size[1]]
        if flip:
            hflip(out[slot])
    return out


def hflip(crop_HW: np.ndarray) -> None:
    """Mirror a contiguous crop (H, W, ...) in place, left to right.

    NumPy copies backwards byte by byte; torch is ten times as fast. A few rows at a time, because this runs in parallel
    with the training step: torch starts no threads for so few elements.
    """
    rows = max(1, _ELEMENTS_OF_ONE_THREAD // crop_HW[0].size)
    for top in range(0, len(crop_HW), rows):
        part = crop_HW[top : top + rows]
        part[:] = torch.from_numpy(part).flip(1).numpy()


def normalize(images_BHW3: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 RGB (B, H, W, 3) as normalised floats (B, 3, H, W) in channels-last memory, not transposed."""
    B, H, W, _ = images_BHW3.shape
    # Whole rows at a time: along an axis of 3 a CPU is many times slower.
    rows = images_BHW3.reshape(B, H, W * 3).to(dtype)
    mean, std = ((torch.tensor(value, dtype=dtype, device=rows.device) * 255).repeat(W) for value in (MEAN, STD))
    return rows.sub_(mean).div_(std).view(B, H, W, 3).permute(0, 3, 1, 2)
