"""Nets as they are traced into ONNX files: from bytes to logits, by arithmetic that inference engines are fast at.

What is computed stays the same up to rounding; only where and in which order changes.

Shapes: N batch, H/W frame in pixels, C classes, h/w the net's own grid.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segdistill.export.decoder import FactoredDecoder, Linear1x1
from segdistill.formats.header import MEAN, STD
from segdistill.nets.heads import V3Head, V3PlusHead
from segdistill.nets.mobilenet import PaddedMobileNetV2

PACKED_PX = 4  # neighbouring pixels of a row that PackedStem reads as one


class ExportWrapper(nn.Module):
    """A net in eval mode, from uint8 frames (N, H, W, 3) to logits (N, C, h, w).

    Args:
        net: stays as it is; a copy is changed.
        from_bytes: the first convolution reads bytes, where the net allows it. Quantised kernels gain by that.
    """

    def __init__(self, net: nn.Module, from_bytes: bool = False) -> None:
        super().__init__()
        self.net = _with_fast_head(copy.deepcopy(net).eval())
        self.stem = _taken_stem(self.net) if from_bytes else None
        self.register_buffer("scale", (1 / (255 * torch.tensor(STD))).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1), persistent=False)

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """image_NHW3 -> logits_NChw."""
        if self.stem is not None:
            return self.net(self.stem(image_NHW3))
        return self.net(image_NHW3.permute(0, 3, 1, 2).float() * self.scale + self.shift)


def _with_fast_head(net: nn.Module) -> nn.Module:
    head = getattr(net, "classifier", None)
    if isinstance(head, V3PlusHead) and isinstance(head.classifier[0], nn.Conv2d):
        net.classifier = FactoredDecoder(head)
    elif isinstance(head, (V3Head, V3PlusHead)):
        head.classifier[-1] = Linear1x1(head.classifier[-1])
    return net


def _taken_stem(net: nn.Module) -> nn.Module | None:
    """The first convolution of `net` as one that reads bytes, taken out of it; None where that is not exact.

    Where a convolution pads with zeros after normalisation, no byte stands for the border.
    """
    backbone = getattr(net, "backbone", None)
    if not isinstance(backbone, PaddedMobileNetV2):
        return None
    conv, norm, _ = backbone.low_level_features[0]
    backbone.low_level_features[0] = nn.Identity()
    return PackedStem(fuse_conv_bn_eval(conv, norm))


class PackedStem(nn.Module):
    """Normalisation, a 3x3 convolution of stride 2 without padding, and ReLU6, from uint8 frames (N, H, W, 3).

    Normalisation is in the weights. Four pixels of a row are read as one of 12 channels, and two outputs are computed
    there at once: int8 kernels work on multiples of 4 input and 16 output channels, and are slow with three.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach() / (255 * torch.tensor(STD)).view(3, 1, 1)
        offset = weight * (255 * torch.tensor(MEAN)).view(3, 1, 1)
        self.channels = conv.out_channels
        # Axes: output of the two, output channel, row, pixel of two packs, colour.
        packed = torch.zeros(2, self.channels, 3, 2 * PACKED_PX, 3)
        for output in range(2):
            packed[output, :, :, 2 * output : 2 * output + 3] = weight.permute(0, 2, 3, 1)
        self.conv = nn.Conv2d(3 * PACKED_PX, 2 * self.channels, (3, 2), (2, 1))
        with torch.no_grad():
            self.conv.weight.copy_(packed.reshape(2 * self.channels, 3, 2, 3 * PACKED_PX).permute(0, 3, 1, 2))
            self.conv.bias.copy_((conv.bias - offset.sum((1, 2, 3))).repeat(2))

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """image_NHW3 -> features of the convolution's channels, at stride 2."""
        batch, height, width, _ = image_NHW3.shape
        packs = (width + PACKED_PX - 1) // PACKED_PX
        padded = F.pad(image_NHW3, (0, 0, 0, PACKED_PX * (packs + 1) - width))
        pixels = padded.reshape(batch, height, packs + 1, 3 * PACKED_PX).permute(0, 3, 1, 2).float()
        pairs = F.relu6(self.conv(pixels)).permute(0, 2, 3, 1)
        return pairs.reshape(batch, -1, 2 * packs, self.channels)[:, :, : (width - 1) // 2].permute(0, 3, 1, 2)
