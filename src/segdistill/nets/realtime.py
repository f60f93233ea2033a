"""Parts of DDRNet and PIDNet: networks of two or three branches, one of which stays at stride 8.

DDRNet: Hong et al., arXiv:2101.06085. PIDNet: Xu et al., arXiv:2206.02066. Names of submodules are those of the public
checkpoints, which load without renaming. Both networks have auxiliary heads, which train and do not ship.

Shapes: B batch, C channels, H/W pixels, h/w cells of a feature map.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdistill.nets.resize import upsample

POOLS = ((5, 2), (9, 4), (17, 8))  # kernel and stride of the windows that a pyramid averages over

# (logits_BCHW at pixels, labels_BHW) -> the label loss that params name, mean over valid pixels
LabelLossFn = Callable[[Tensor, Tensor], Tensor]


class AuxiliaryNet(nn.Module):
    """A network with auxiliary heads: in training mode it returns (logits_BChw, *auxiliary logits), else logits_BChw.

    Attributes:
        auxiliary_heads: names of the submodules that only training runs.
    """

    auxiliary_heads: tuple[str, ...]

    def auxiliary_loss(
        self, auxiliary: list[Tensor], pixels_BCHW: Tensor, labels_BHW: Tensor, label_loss: LabelLossFn
    ) -> Tensor:
        """Return what the auxiliary heads add to the label loss of a training step, with the weights of their paper.

        Args:
            auxiliary: the logits of the auxiliary heads, as `forward` returns them.
            pixels_BCHW: logits of the network itself, float32, upsampled to the labels.
        """
        raise NotImplementedError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input or its projection (He et al., arXiv:1512.03385).

    Args:
        activates: whether a ReLU follows the sum; the last block of a layer leaves that to its readers.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, activates: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)
        self.activates = activates

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of `channels`, at `stride`."""
        out = F.relu(self.bn1(self.conv1(x_BCHW)))
        out = self.bn2(self.conv2(out))
        out = out + (x_BCHW if self.downsample is None else self.downsample(x_BCHW))
        return F.relu(out) if self.activates else out


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride) and 1x1 convolutions, added to the input or its projection; no ReLU follows."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = 2 * channels
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of 2 * `channels`, at `stride`."""
        out = F.relu(self.bn1(self.conv1(x_BCHW)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + (x_BCHW if self.downsample is None else self.downsample(x_BCHW))


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return what brings the input of a block to the shape of its output; None where it has that shape."""
    return None if (in_channels, stride) == (out_channels, 1) else conv_bn(in_channels, out_channels, 1, stride)


def conv_bn(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size up to its stride, without bias, and batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def bn_relu_conv(in_channels: int, out_channels: int, kernel: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return batch norm, ReLU and a convolution that keeps the size, without bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv]


def basic_layer(in_channels: int, channels: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Return so many basic blocks, of which the first has the stride; the ReLU of the last is left to its readers."""
    made = [BasicBlock(in_channels, channels, stride, activates=blocks > 1)]
    made += [BasicBlock(channels, channels, 1, activates=number < blocks) for number in range(2, blocks + 1)]
    return nn.Sequential(*made)


def bottleneck_layer(in_channels: int, channels: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """Return so many bottlenecks, to 2 * `channels`, of which the first has the stride; no ReLU is between them."""
    made = [Bottleneck(in_channels, channels, stride)]
    return nn.Sequential(*made, *(Bottleneck(2 * channels, channels, 1) for _ in range(blocks - 1)))


def stem(channels: int) -> nn.Sequential:
    """Return two 3x3 convolutions with bias, batch norm and ReLU: from an image to stride 4."""
    layers: list[nn.Module] = []
    for in_channels in (3, channels):
        conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SegmentHead(nn.Module):
    """Classify features that no batch norm or ReLU has seen yet: a 3x3 convolution, then a 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, classes: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2: nn.Module = nn.Conv2d(channels, classes, 1)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return logits_BChw."""
        out = self.conv1(F.relu(self.bn1(x_BChw)))
        return self.conv2(F.relu(self.bn2(out)))


class PyramidPooling(nn.Module):
    """Average features over windows of several sizes and over the image, and project each average to few channels.

    What the parents of DAPPM and PAPPM share. The windows pad with zeros, which count. They fit maps of any size, down
    to one cell.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        averages: list[nn.Module] = [nn.AvgPool2d(kernel, stride, padding=kernel // 2) for kernel, stride in POOLS]
        for number, average in enumerate([*averages, nn.AdaptiveAvgPool2d(1)], start=1):
            self.add_module(f"scale{number}", nn.Sequential(average, *bn_relu_conv(in_channels, channels)))
        self.scale0 = nn.Sequential(*bn_relu_conv(in_channels, channels))

    def scales(self, x_BChw: Tensor) -> list[Tensor]:
        """Return the projected features and averages, from fine to coarse, all of the size of x but the last.

        The average of the image is one cell, which broadcasts: that equals resizing it, and has an exact gradient.
        """
        pooled = [self.get_submodule(f"scale{number}")(x_BChw) for number in range(len(POOLS) + 2)]
        return [pooled[0], *(upsample(each, x_BChw.shape[-2:]) for each in pooled[1:-1]), pooled[-1]]


class DAPPM(PyramidPooling):
    """Deep aggregation pyramid pooling of DDRNet: each scale is added to the convolved finer one."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__(in_channels, channels)
        for number in range(1, len(POOLS) + 2):
            self.add_module(f"process{number}", nn.Sequential(*bn_relu_conv(channels, channels, kernel=3)))
        self.compression = nn.Sequential(*bn_relu_conv(channels * (len(POOLS) + 2), out_channels))
        self.shortcut = nn.Sequential(*bn_relu_conv(in_channels, out_channels))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return features of `out_channels` of the same size."""
        finest, *coarser = self.scales(x_BChw)
        processed = [finest]
        for number, scale in enumerate(coarser, start=1):
            processed.append(self.get_submodule(f"process{number}")(scale + processed[-1]))
        return self.compression(torch.cat(processed, dim=1)) + self.shortcut(x_BChw)


class PAPPM(PyramidPooling):
    """Parallel aggregation pyramid pooling of PIDNet: each scale is added to the finest, one convolution for all."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__(in_channels, channels)
        coarser = len(POOLS) + 1
        together = bn_relu_conv(channels * coarser, channels * coarser, kernel=3, groups=coarser)
        self.scale_process = nn.Sequential(*together)
        self.compression = nn.Sequential(*bn_relu_conv(channels * (coarser + 1), out_channels))
        self.shortcut = nn.Sequential(*bn_relu_conv(in_channels, out_channels))

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return features of `out_channels` of the same size."""
        finest, *coarser = self.scales(x_BChw)
        processed = self.scale_process(torch.cat([finest + scale for scale in coarser], dim=1))
        return self.compression(torch.cat([finest, processed], dim=1)) + self.shortcut(x_BChw)
