"""Networks in the form that is exported to ONNX: from bytes to logits, in operators that inference engines run fast.

They compute the same logits up to rounding, in another order.

Shapes: N batch, H/W frame in pixels, C classes, h/w the net's own grid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segdistill.export.decoder import FactoredDecoder, Linear1x1
from segdistill.formats.header import MEAN, STD
from segdistill.nets.heads import V3Head, V3PlusHead
from segdistill.nets.mobilenet import PaddedMobileNetV2
from segdistill.nets.realtime import AuxiliaryNet, SegmentHead

PACKED_PX = 4  # neighbouring pixels of a row that PackedStem packs into one


class ExportWrapper(nn.Module):
    """Run a network in eval mode, from uint8 frames (N, H, W, 3) to logits (N, C, h, w).

    Args:
        net: is copied, and not changed.
        from_bytes: let the first convolution read bytes where the network allows it, for quantised kernels.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, from_bytes: bool = False) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).eval()
        head = getattr(self.net, "classifier", None)
        if isinstance(head, V3PlusHead) and isinstance(head.classifier[0], nn.Conv2d):
            self.net.classifier = FactoredDecoder(head)
        elif isinstance(head, (V3Head, V3PlusHead)):
            last = head.classifier[-1]
            assert isinstance(last, nn.Conv2d)
            head.classifier[-1] = Linear1x1(last)
        elif isinstance(self.net, AuxiliaryNet):
            final = self.net.get_submodule("final_layer")
            assert isinstance(final, SegmentHead) and isinstance(final.conv2, nn.Conv2d)
            final.conv2 = Linear1x1(final.conv2)
        self.stem = _take_stem(self.net) if from_bytes else None
        self.register_buffer("scale", (1 / (255 * torch.tensor(STD))).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1), persistent=False)

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """Return logits_NChw."""
        if self.stem is not None:
            return self.net(self.stem(image_NHW3))
        return self.net(image_NHW3.permute(0, 3, 1, 2).float() * self.scale + self.shift)


def _take_stem(net: nn.Module) -> nn.Module | None:
    """Remove the first convolution from `net` and return it as one that reads bytes; None for other networks."""
    backbone = getattr(net, "backbone", None)
    if isinstance(backbone, PaddedMobileNetV2):
        stem = backbone.low_level_features[0]
        backbone.low_level_features[0] = nn.Identity()
        pads, activation = False, F.relu6  # that network pads later
    elif isinstance(net, AuxiliaryNet):
        layers = net.get_submodule("conv1")
        assert isinstance(layers, nn.Sequential)
        stem, net.conv1 = layers[:3], layers[3:]
        pads, activation = True, F.relu
    else:
        return None
    assert isinstance(stem, nn.Sequential)
    conv, batch_norm, _ = stem
    assert isinstance(conv, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d)
    return PackedStem(fuse_conv_bn_eval(conv, batch_norm), pads, activation)


class PackedStem(nn.Module):
    """Normalise uint8 frames (N, H, W, 3), convolve them (3x3, stride 2) and apply an activation.

    The weights include the normalisation. The convolution reads four pixels of a row as one of 12 channels and computes
    two outputs there: int8 kernels work on multiples of 4 input and 16 output channels, and are slow with three.

    Args:
        conv: has a bias.
        pads: whether the convolution pads by one pixel. Zeros around normalised pixels are the mean colour, rounded to
            bytes here: by half a step at most, which is what quantising normalised pixels costs everywhere.
    """

    mean_colour: Tensor

    def __init__(self, conv: nn.Conv2d, pads: bool, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        assert conv.bias is not None
        self.pads, self.activation = pads, activation
        mean_colour = (255 * torch.tensor(MEAN)).round().to(torch.uint8)
        self.register_buffer("mean_colour", mean_colour.view(1, 1, 1, 3), persistent=False)
        weight = conv.weight.detach() / (255 * torch.tensor(STD)).view(3, 1, 1)
        offset = weight * (255 * torch.tensor(MEAN)).view(3, 1, 1)
        self.channels = conv.out_channels
        # Axes: output of the two, output channel, row, pixel of two packs, colour.
        packed = torch.zeros(2, self.channels, 3, 2 * PACKED_PX, 3)
        for output in range(2):
            packed[output, :, :, 2 * output : 2 * output + 3] = weight.permute(0, 2, 3, 1)
        self.conv = nn.Conv2d(3 * PACKED_PX, 2 * self.channels, (3, 2), (2, 1))
        packed = packed.reshape(2 * self.channels, 3, 2, 3 * PACKED_PX).permute(0, 3, 1, 2)
        self.conv.weight = nn.Parameter(packed.contiguous())
        self.conv.bias = nn.Parameter((conv.bias.detach() - offset.sum((1, 2, 3))).repeat(2))

    def forward(self, image_NHW3: Tensor) -> Tensor:
        """Return the features of the convolution, at stride 2."""
        if self.pads:
            batch, height, width, _ = image_NHW3.shape
            row = self.mean_colour.expand(batch, 1, width, 3)
            column = self.mean_colour.expand(batch, height + 2, 1, 3)
            image_NHW3 = torch.cat([column, torch.cat([row, image_NHW3, row], dim=1), column], dim=2)
        batch, height, width, _ = image_NHW3.shape
        packs = (width + PACKED_PX - 1) // PACKED_PX
        padded = F.pad(image_NHW3, (0, 0, 0, PACKED_PX * (packs + 1) - width))
        pixels = padded.reshape(batch, height, packs + 1, 3 * PACKED_PX).permute(0, 3, 1, 2).float()
        pairs = self.activation(self.conv(pixels)).permute(0, 2, 3, 1)
        return pairs.reshape(batch, -1, 2 * packs, self.channels)[:, :, : (width - 1) // 2].permute(0, 3, 1, 2)
