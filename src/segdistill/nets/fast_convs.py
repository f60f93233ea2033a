"""Convolutions for training on a CPU: another way for layers that oneDNN has no fast, or no right, gradients for.

Only the class of such a layer changes. Names, weights, random numbers and exported graphs stay as they are, and each
class keeps nn.Conv2d's own forward for evaluation, traced graphs and GPUs. The choice follows from the layer, the size
of the image and the processor alone, so that a resumed training computes the same bytes.

On 2 cores of a Zen 4 a step of DeepLabV3+ MobileNetV2 takes 0.67 of the time in bfloat16 and 0.92 in float32. Padded
1x1 and dilated 3x3 layers gain 4% each, depthwise layers the rest (benchmarks/convolutions.py).

Shapes: B batch, C channels, O output channels, H/W pixels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segdistill.nets.depthwise import DepthwiseConv2d, dtype_under_autocast, trains_on_cpu

STRIDED_3X3 = (3, 3), (2, 2), (1, 1)  # kernel, stride, padding
MAX_PADDED = 1.2  # times the pixels of the image, where a 1x1 convolution pads its input


def use_fast_convs(net: nn.Module) -> nn.Module:
    """Change the class of each convolution of `net` that has a faster way to train on a CPU, and return `net`."""
    for conv in net.modules():
        if type(conv) is not nn.Conv2d:
            continue
        is_dense = conv.groups == 1 and conv.stride == (1, 1)
        pads_zeros_only = conv.bias is None and conv.padding_mode == "zeros" and conv.padding[0] == conv.padding[1]
        if 1 < conv.groups == conv.in_channels == conv.out_channels:
            conv.__class__ = DepthwiseConv2d
        elif conv.groups == 1 and pads_zeros_only and (conv.kernel_size, conv.stride, conv.padding) == STRIDED_3X3:
            conv.__class__ = StridedConv3x3
        elif not (is_dense and pads_zeros_only):
            continue
        elif conv.kernel_size == (1, 1) and conv.padding != (0, 0):
            conv.__class__ = PaddedConv1x1
        elif conv.kernel_size == (3, 3) and conv.padding == conv.dilation != (1, 1):
            conv.__class__ = DilatedConv3x3
    return net


class PaddedConv1x1(nn.Conv2d):
    """A 1x1 convolution with padding and without bias: it maps the padded zeros to zeros.

    oneDNN's kernels for 1x1 convolutions take no padding; its others copy the image and call a matrix product. So the
    padding is an operation of its own.
    """

    padding: tuple[int, int]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return nn.Conv2d's output."""
        if not trains_on_cpu(self, x_BCHW):
            return super().forward(x_BCHW)
        (height, width), padding = x_BCHW.shape[2:], self.padding[0]
        sides = (padding, padding, padding, padding)
        # The input is narrower than the output, but its padding is convolved, too.
        if (height + 2 * padding) * (width + 2 * padding) < MAX_PADDED * height * width:
            return F.conv2d(F.pad(x_BCHW.to(dtype_under_autocast(x_BCHW)), sides), self.weight)
        return F.pad(F.conv2d(x_BCHW, self.weight), sides)


class DilatedConv3x3(nn.Conv2d):
    """A dilated 3x3 convolution that keeps the size, as an ASPP has it: matrix products over the pixels that it reads.

    oneDNN multiplies the zeros of the padding, too. Over 16x16 pixels and with dilation 12 those are three quarters of
    what the kernel reads, and with dilation 18 all but what its centre reads.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return nn.Conv2d's output."""
        (height, width), dilation = x_BCHW.shape[2:], self.dilation[0]
        if not trains_on_cpu(self, x_BCHW) or 2 * dilation < max(height, width):
            return super().forward(x_BCHW)
        x_BHWC = x_BCHW.to(dtype_under_autocast(x_BCHW)).permute(0, 2, 3, 1)
        taps = self.weight.to(x_BHWC.dtype).permute(2, 3, 0, 1).flatten(0, 1).unbind()  # row by row, each O x C
        out_BHWO = F.linear(x_BHWC, taps[4])
        for index, tap in enumerate(taps):
            row, column = (index // 3 - 1) * dilation, (index % 3 - 1) * dilation  # of the pixel that the tap reads
            if index == 4 or abs(row) >= height or abs(column) >= width:  # added already, or reads padding only
                continue
            # So many outputs at each side read padding.
            top, bottom, left, right = max(0, -row), max(0, row), max(0, -column), max(0, column)
            read = F.linear(x_BHWC[:, bottom : height - top, right : width - left], tap)
            # Not added in place: torch's compiler takes minutes for that.
            out_BHWO = out_BHWO + F.pad(read, (0, 0, left, right, top, bottom))
        return out_BHWO.permute(0, 3, 1, 2)


class StridedConv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 2, which sees a column of zeros more where the image is one pixel wide.

    There oneDNN leaves most of the weight's bfloat16 gradient unwritten: it is what was in that memory, often NaN.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return nn.Conv2d's output."""
        if trains_on_cpu(self, x_BCHW) and x_BCHW.shape[3] == 1:
            return super().forward(F.pad(x_BCHW, (0, 1)))
        return super().forward(x_BCHW)
