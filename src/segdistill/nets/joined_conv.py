"""A 3x3 convolution over low-level features joined with upsampled ones, without convolving what was upsampled.

DeepLabV3+ resizes 256 channels from the output stride to stride 4, joins 48 low-level channels, and convolves: that is
two thirds of a light student's multiplications. But resizing and convolution are both linear, and resizing treats all
channels alike. So this applies the nine taps of the kernel to the small map, as one 1x1 convolution, then resizes the
result of each tap and moves it to its place, one axis after the other. The sum is the same up to rounding, at about a
tenth of the multiplications on those channels; it makes neither the resized nor the joined map. A training step with
the decoder as published takes 1.08 times as long (benchmarks/ways.py).

`export.decoder` has the same sum as an ONNX graph, for images of any size, in blocks, of operators that quantise well.
The two share no code: this file is part of every training, and an edit of the graph must not retrain.

Shapes: B batch, C channels (L low-level, D deep, O out), h/w of the small map, H/W of the low-level map.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def joined_conv3x3(low_BLHW: Tensor, deep_BDhw: Tensor, weight_OC33: Tensor) -> Tensor:
    """Return conv3x3(cat(low, resized deep)) with zero padding, as out_BOHW in channels-last memory; C = L + D.

    Resizing is bilinear with half-pixel centres (align_corners=False), from any h, w to any H, W that are not smaller.
    """
    (batch, low_channels, height, width), (h, w) = low_BLHW.shape, deep_BDhw.shape[-2:]
    of_low, of_deep = weight_OC33.split([low_channels, deep_BDhw.shape[1]], dim=1)
    out = len(weight_OC33)
    # Every tap on the small map; channels are ordered (tap of x, tap of y, O).
    taps = of_deep.permute(3, 2, 0, 1).reshape(9 * out, -1, 1, 1)
    tapped = F.conv2d(deep_BDhw, taps).permute(0, 2, 3, 1).reshape(batch * h, w * 3, 3 * out)
    along_x = _moved_resize(w, width, tapped) @ tapped
    along_x = along_x.view(batch, h, width, 3, out).permute(0, 1, 3, 2, 4).reshape(batch, h * 3, width * out)
    along_y = _moved_resize(h, height, tapped) @ along_x
    return F.conv2d(low_BLHW, of_low, padding=1) + along_y.view(batch, height, width, out).permute(0, 3, 1, 2)


def _moved_resize(small: int, large: int, like: Tensor) -> Tensor:
    """Return the matrix (large, small * 3) of bilinear resizing, moved by each tap -1, 0, 1; zeros outside."""
    places = torch.arange(-1, large + 1, dtype=torch.float64, device=like.device)
    source = ((places + 0.5) * (small / large) - 0.5).clamp(0, small - 1)
    cells = torch.arange(small, dtype=torch.float64, device=like.device)
    resize = (1 - (source[:, None] - cells).abs()).clamp(min=0)
    resize[[0, -1]] = 0  # the convolution's padding
    moved = torch.stack([resize[tap : tap + large] for tap in range(3)], dim=2)
    return moved.reshape(large, small * 3).to(like.dtype)
