"""Crops, scales, flips and normalisation: one geometry for image, label and cached logits.

Shapes: B batch, H/W crop in pixels, h/w crop in logit cells (H / stride), C classes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.data.arrays import Rows
from segdistill.data.transfer import constant
from segdistill.formats.header import MEAN, STD

_ELEMENTS_OF_ONE_THREAD = 32768  # at::internal::GRAIN_SIZE


def crop(
    source: Rows,
    frames: np.ndarray,
    origins: np.ndarray,
    flips: np.ndarray,
    sizes: np.ndarray | tuple[int, int],
    out: np.ndarray,
) -> np.ndarray:
    """Copy a window of each of `frames` out of source (N, H, W, ...) into out (B, ...), flipped where `flips` say.

    `origins` (B, 2) and `sizes`, (B, 2) or one for all, are in cells of `source`. Windows of another size than `out`
    are resized, which only images and labels can be. Only the windows' own rows of a mapped array are read.
    """
    sizes = np.broadcast_to(sizes, (len(frames), 2))
    for slot, (frame, (top, left), (height, width), flip) in enumerate(zip(frames, origins, sizes, flips, strict=True)):
        window = source[frame, top : top + height, left : left + width]
        is_scaled = (height, width) != out.shape[1:3]
        out[slot] = resized(window, out.shape[1:3]) if is_scaled else window
        if flip:
            hflip(out[slot])
    return out


def resized(window: np.ndarray, size_px: tuple[int, ...]) -> np.ndarray:
    """Return an image uint8 (H, W, 3) or a label (H, W) at another size, with half-pixel centres.

    Images are interpolated, and averaged where they shrink (antialias). A label is that of the pixel under the centre
    of each new one: classes do not blend.
    """
    if window.ndim == 2:
        rows, columns = ((2 * np.arange(n) + 1) * m // (2 * n) for n, m in zip(size_px, window.shape, strict=True))
        return window[rows][:, columns]
    # A copy: torch warns of read-only memory, and its fast kernel for bytes needs whole channels-last images.
    planes = torch.from_numpy(np.array(window)).permute(2, 0, 1).unsqueeze(0)
    return F.interpolate(planes, size_px, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


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
    mean, std = ((constant(value, dtype, rows.device) * 255).repeat(W) for value in (MEAN, STD))
    return rows.sub_(mean).div_(std).view(B, H, W, 3).permute(0, 3, 1, 2)
