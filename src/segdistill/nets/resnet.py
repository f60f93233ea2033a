"""ResNet-50 and -101 as torchvision builds them, under its names, without their classifier.

Own code, because importing torchvision's adds about 1 s to the start of a stage: it loads torch's compiler.

Shapes: B batch, C channels, H/W pixels; low-level features at stride 4, the output at the output stride.
"""

from __future__ import annotations

from torch import Tensor, nn

from segdistill.nets.mobilenet import init_fan_out

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}  # in each of the four layers
STEM_CHANNELS = 64
EXPANSION = 4  # output channels of a block per channel of its 3x3 convolution


class Bottleneck(nn.Module):
    """1x1, 3x3 (which has the stride and the dilation) and 1x1 convolutions, added to the input or its projection.

    He et al., arXiv:1512.03385, in the form known as V1.5.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, dilation: int, projects: bool) -> None:
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if projects:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of 4 * `channels`, at `stride`."""
        out = self.relu(self.bn1(self.conv1(x_BCHW)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.relu(out)


class ResNetBackbone(nn.Module):
    """ResNet-50 or -101, dilated from the output stride on."""

    low_channels = 256
    out_channels = 2048
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        in_channels, current_stride, dilation = STEM_CHANNELS, 4, 1
        for number, blocks in enumerate(BLOCKS[name], start=1):
            channels, stride = 64 * 2 ** (number - 1), 1 if number == 1 else 2
            # The first block of a layer still reads features of the layer before, hence its dilation.
            first_dilation = dilation
            if current_stride == output_stride:
                dilation, stride = dilation * stride, 1
            current_stride *= stride
            first = Bottleneck(in_channels, channels, stride=stride, dilation=first_dilation, projects=True)
            in_channels = channels * EXPANSION
            rest = [
                Bottleneck(in_channels, channels, stride=1, dilation=dilation, projects=False)
                for _ in range(blocks - 1)
            ]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
        init_fan_out(self)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features (256 channels, stride 4) and output (2048 channels, output stride)."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        low = self.layer1(stem)
        return low, self.layer4(self.layer3(self.layer2(low)))
