"""DeepLab heads: features in, logits at the network's own stride out.

Names of submodules are those of the public DeepLabV3Plus-PyTorch checkpoints, which load without renaming.

Shapes: B batch, C channels (logits: classes), h/w at stride 4 for low-level features, at the output stride for `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from segdistill.nets.joined_conv import joined_conv3x3
from segdistill.nets.resize import upsample

ASPP_CHANNELS = 256
LOW_LEVEL_CHANNELS = 48
DROPOUT = 0.1
DILATIONS = {16: (6, 12, 18), 8: (12, 24, 36)}  # of the ASPP branches, by output stride

# (in_channels, out_channels, dilation) -> a 3x3 convolution that keeps the size
Conv3x3 = Callable[[int, int, int], nn.Module]


class Backbone(Protocol):
    """A network that gives low-level features and its output, each of so many channels."""

    low_channels: int
    out_channels: int


def plain_conv3x3(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Module:
    """Return an ordinary 3x3 convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)


class SeparableConv3x3(nn.Module):
    """Convolve each channel by itself (3x3), then across channels (1x1)."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, 1, dilation, dilation, in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        )

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return the same size with `out_channels`."""
        return self.body(x_BChw)


def _activated(conv: nn.Module, channels: int, batch_norm: bool) -> list[nn.Module]:
    """Return the convolution, its batch norm if it has one, and ReLU."""
    return [conv, *([nn.BatchNorm2d(channels)] if batch_norm else []), nn.ReLU(inplace=True)]


class ImagePooling(nn.Sequential):
    """Average the whole image into one vector, and repeat it at every position: a branch of the ASPP."""

    def __init__(self, in_channels: int, batch_norm: bool) -> None:
        conv = nn.Conv2d(in_channels, ASPP_CHANNELS, 1, bias=False)
        super().__init__(nn.AdaptiveAvgPool2d(1), *_activated(conv, ASPP_CHANNELS, batch_norm))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return the same size with 256 channels."""
        # Expanding equals resizing a 1x1 image, and has an exact, deterministic gradient on every device.
        return super().forward(x_BChw).expand(-1, -1, x_BChw.shape[-2], x_BChw.shape[-1])


class ASPP(nn.Module):
    """Look at the features at five ranges and project them to 256 channels (atrous spatial pyramid pooling)."""

    def __init__(self, in_channels: int, output_stride: int, conv3x3: Conv3x3, batch_norm: bool = True) -> None:
        super().__init__()
        branches: list[nn.Module] = [nn.Conv2d(in_channels, ASPP_CHANNELS, 1, bias=False)]
        branches += [conv3x3(in_channels, ASPP_CHANNELS, dilation) for dilation in DILATIONS[output_stride]]
        self.convs = nn.ModuleList(nn.Sequential(*_activated(conv, ASPP_CHANNELS, batch_norm)) for conv in branches)
        self.convs.append(ImagePooling(in_channels, batch_norm))
        project = nn.Conv2d(len(self.convs) * ASPP_CHANNELS, ASPP_CHANNELS, 1, bias=False)
        self.project = nn.Sequential(*_activated(project, ASPP_CHANNELS, batch_norm), nn.Dropout(DROPOUT))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return the same size with 256 channels."""
        return self.project(torch.cat([branch(x_BChw) for branch in self.convs], dim=1))


class V3Head(nn.Module):
    """Classify the output of the backbone, as DeepLabV3 does. Without batch norm this is the lite head."""

    def __init__(
        self, backbone: Backbone, classes: int, output_stride: int, conv3x3: Conv3x3, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            ASPP(backbone.out_channels, output_stride, conv3x3, batch_norm),
            *_activated(conv3x3(ASPP_CHANNELS, ASPP_CHANNELS, 1), ASPP_CHANNELS, batch_norm),
            nn.Conv2d(ASPP_CHANNELS, classes, 1),
        )
        _init_fan_in(self)

    def forward(self, low_BChw: Tensor, out_BChw: Tensor) -> Tensor:
        """Return logits_BChw at the output stride; low-level features are not used."""
        return self.classifier(out_BChw)


class V3PlusHead(nn.Module):
    """Resize the output, join it with low-level features and classify at stride 4, as DeepLabV3+ does."""

    def __init__(self, backbone: Backbone, classes: int, output_stride: int, conv3x3: Conv3x3) -> None:
        super().__init__()
        project = nn.Conv2d(backbone.low_channels, LOW_LEVEL_CHANNELS, 1, bias=False)
        self.project = nn.Sequential(*_activated(project, LOW_LEVEL_CHANNELS, batch_norm=True))
        self.aspp = ASPP(backbone.out_channels, output_stride, conv3x3)
        self.classifier = nn.Sequential(
            *_activated(conv3x3(LOW_LEVEL_CHANNELS + ASPP_CHANNELS, ASPP_CHANNELS, 1), ASPP_CHANNELS, batch_norm=True),
            nn.Conv2d(ASPP_CHANNELS, classes, 1),
        )
        _init_fan_in(self)

    def forward(self, low_BChw: Tensor, out_BChw: Tensor) -> Tensor:
        """Return logits_BChw at stride 4 of low-level features and output."""
        low, deep = self.project(low_BChw), self.aspp(out_BChw)
        conv = self.classifier[0]
        # Not in a traced graph, whose sizes must stay free, nor on GPUs, whose plain convolutions are fast.
        if isinstance(conv, nn.Conv2d) and deep.device.type == "cpu" and not torch.jit.is_tracing():
            return self.classifier[1:](joined_conv3x3(low, deep, conv.weight))
        return self.classifier(torch.cat([low, upsample(deep, low.shape[-2:])], dim=1))


def _init_fan_in(module: nn.Module) -> None:
    """Initialise convolutions by Kaiming's normal of the fan-in; torch sets batch norms to scale 1 and shift 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
