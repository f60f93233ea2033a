"""MobileNetV2 as the public DeepLabV3Plus-PyTorch checkpoints expect it, and as torchvision builds it.

They differ in where zeros are padded. The public one does not pad in the first convolution, and pads the INPUT of each
inverted residual rather than its depthwise convolution. The border is then expanded and normalised like any pixel, so
weights trained one way lose accuracy when run the other way.

Shapes: B batch, C channels, H/W pixels; low-level features at stride 4, the output at the output stride.
"""

from __future__ import annotations

from torch import Tensor, nn

STEM_CHANNELS = 32
LOW_LEVEL_BLOCKS = 4  # the stem and three inverted residuals: stride 4
# One row a group of inverted residuals: expand ratio, output channels, blocks, stride of the first block.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def conv_bn_relu6(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Return a convolution without bias, batch norm and ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand, convolve depthwise (3x3), project; add the input where the shapes agree."""

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int, dilation: int, expand_ratio: int, pads_input: bool
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.adds_input = stride == 1 and in_channels == out_channels
        # The first convolution of the block pads for its 3x3: a 1x1 convolution without bias maps padded zeros to
        # zeros, so this equals padding the block's input, with one operation less.
        expands = expand_ratio != 1
        pads_first = expands and pads_input
        layers = [conv_bn_relu6(in_channels, hidden, 1, padding=dilation if pads_first else 0)] if expands else []
        self.conv = nn.Sequential(
            *layers,
            conv_bn_relu6(
                hidden,
                hidden,
                3,
                stride=stride,
                padding=0 if pads_first else dilation,
                dilation=dilation,
                groups=hidden,
            ),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features of `out_channels`, at `stride`."""
        return x_BCHW + self.conv(x_BCHW) if self.adds_input else self.conv(x_BCHW)


class PaddedMobileNetV2(nn.Module):
    """The backbone of the public `*_mobilenet` checkpoints: 17 inverted residuals, without the last 1x1 convolution."""

    low_channels = 24
    out_channels = 320

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        stem = conv_bn_relu6(3, STEM_CHANNELS, 3, stride=2)
        blocks = nn.Sequential(stem, *_inverted_residuals(output_stride, pads_input=True))
        # Slices of a Sequential keep their numbers: the public keys are high_level_features.4 to .17.
        self.low_level_features = blocks[:LOW_LEVEL_BLOCKS]
        self.high_level_features = blocks[LOW_LEVEL_BLOCKS:]
        init_fan_out(self)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features (24 channels, stride 4) and output (320 channels, output stride)."""
        low = self.low_level_features(images_BCHW)
        return low, self.high_level_features(low)


class TorchvisionMobileNetV2(nn.Module):
    """torchvision's MobileNetV2 under its names, without its last 1x1 convolution, dilated from the output stride on.

    Own code, because importing torchvision's adds about 1 s to the start of a stage: it loads torch's compiler.
    """

    low_channels = 24
    out_channels = 320

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        stem = conv_bn_relu6(3, STEM_CHANNELS, 3, stride=2, padding=1)
        self.features = nn.Sequential(stem, *_inverted_residuals(output_stride, pads_input=False))
        init_fan_out(self)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features (24 channels, stride 4) and output (320 channels, output stride)."""
        low = self.features[:LOW_LEVEL_BLOCKS](images_BCHW)
        return low, self.features[LOW_LEVEL_BLOCKS:](low)


def _inverted_residuals(output_stride: int, pads_input: bool) -> list[InvertedResidual]:
    """Return all blocks; from the output stride on, dilation takes the place of strides."""
    blocks: list[InvertedResidual] = []
    channels, current_stride, dilation = STEM_CHANNELS, 2, 1
    for expand_ratio, out_channels, num_blocks, group_stride in GROUPS:
        # The first block of a group still reads features of the group before, hence its dilation.
        first_dilation, first_stride = dilation, group_stride
        if current_stride == output_stride:
            first_stride = 1
            dilation *= group_stride
        else:
            current_stride *= group_stride
        for index in range(num_blocks):
            blocks.append(
                InvertedResidual(
                    channels,
                    out_channels,
                    stride=first_stride if index == 0 else 1,
                    dilation=first_dilation if index == 0 else dilation,
                    expand_ratio=expand_ratio,
                    pads_input=pads_input,
                )
            )
            channels = out_channels
    return blocks


def init_fan_out(module: nn.Module) -> None:
    """Initialise convolutions by Kaiming's normal of the fan-out; torch sets batch norms to scale 1 and shift 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
