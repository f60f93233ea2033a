"""Crops, flips, colour and normalisation: one geometry for image, label and cached logits.

Shapes: B batch, H/W crop in pixels, h/w crop in logit cells (H / stride), C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# ImageNet statistics of RGB in 0..1, which the public checkpoints and torchvision's backbones are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
_ELEMENTS_OF_ONE_THREAD = 32768  # at::internal::GRAIN_SIZE
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision's rgb_to_grayscale


def cut(
    source: np.ndarray,
    frames: np.ndarray,
    origins: np.ndarray,
    flips: np.ndarray,
    size: tuple[int, int],
    out: np.ndarray,
) -> np.ndarray:
    """Copy a crop of each of `frames` out of source (N, H, W, ...) into out (B, *size, ...), mirrored where flipped.

    `origins` (B, 2) and `size` are in cells of `source`. Only the crops' own rows of a mapped array are read.
    """
    for slot, (frame, (top, left), flip) in enumerate(zip(frames, origins, flips, strict=True)):
        out[slot] = source[frame, top : top + size[0], left : left + size[1]]
        if flip:
            _mirror(out[slot])
    return out


def _mirror(crop_HW: np.ndarray) -> None:
    """Turn a contiguous crop (H, W, ...) round in place, left to right.

    numpy copies backwards byte by byte; torch is ten times as fast. A few rows at a time, because this runs beside the
    arithmetic of the training: torch starts no threads of its own for so few elements.
    """
    rows = max(1, _ELEMENTS_OF_ONE_THREAD // crop_HW[0].size)
    for top in range(0, len(crop_HW), rows):
        part = crop_HW[top : top + rows]
        part[:] = torch.from_numpy(part).flip(1).numpy()


def normalised(images_BHW3: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 RGB (B, H, W, 3) to normalised floats (B, 3, H, W) in channels-last memory: nothing is transposed."""
    B, H, W, _ = images_BHW3.shape
    # Whole rows at a time: arithmetic along an axis of 3 is many times slower on a CPU.
    rows = images_BHW3.reshape(B, H, W * 3).to(dtype)
    mean, std = ((torch.tensor(value, dtype=dtype, device=rows.device) * 255).repeat(W) for value in (MEAN, STD))
    return rows.sub_(mean).div_(std).view(B, H, W, 3).permute(0, 3, 1, 2)


def jittered(images_BHW3: Tensor, colour_B3: np.ndarray) -> Tensor:
    """Brightness, then contrast, then saturation of uint8 RGB (B, H, W, 3), by the factors in `colour_B3`.

    torchvision's adjust_brightness, adjust_contrast and adjust_saturation on floats in 0..255, in this fixed order;
    rounded back to uint8 once, at the end.
    """
    factors = torch.as_tensor(colour_B3, dtype=torch.float32, device=images_BHW3.device)
    brightness, contrast, saturation = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    luma = torch.tensor(_LUMA, device=images_BHW3.device)
    images = (images_BHW3.float() * brightness).clamp_(0, 255)
    mean = (images @ luma).mean(dim=(1, 2)).view(-1, 1, 1, 1)
    images = torch.lerp(mean, images, contrast).clamp_(0, 255)
    grey = (images @ luma).unsqueeze(-1)
    return torch.lerp(grey, images, saturation).clamp_(0, 255).round_().to(torch.uint8)
