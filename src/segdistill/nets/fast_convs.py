"""Convolutions for training on a CPU: layers that oneDNN has no fast kernels for are computed another way.

Only the class of such a layer changes. Names, weights, random numbers and exported graphs stay as they are, and each
class keeps nn.Conv2d's own forward for evaluation, traced graphs and GPUs.

Shapes: B batch, C channels, O output channels, H/W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from segdistill.nets.depthwise import DepthwiseConv2d, dtype_under_autocast, trains_on_cpu


def use_fast_convs(net: nn.Module) -> nn.Module:
    """Change the class of each convolution of `net` that has a faster way to train on a CPU, and return `net`."""
    for conv in net.modules():
        if type(conv) is not nn.Conv2d:
            continue
        is_same_size = conv.stride == (1, 1) and conv.padding == conv.dilation and conv.padding_mode == "zeros"
        if 1 < conv.groups == conv.in_channels == conv.out_channels:
            conv.__class__ = DepthwiseConv2d
        elif conv.groups > 1 or conv.bias is not None:
            continue
        elif conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.padding[0] == conv.padding[1] > 0:
            conv.__class__ = PaddedConv1x1
        elif conv.kernel_size == (3, 3) and is_same_size and conv.dilation[0] == conv.dilation[1] > 1:
            conv.__class__ = DilatedConv3x3
    return net


class PaddedConv1x1(nn.Conv2d):
    """A 1x1 convolution with padding and without bias: it maps the padded zeros to zeros.

    oneDNN's kernels for 1x1 convolutions take no padding; its others copy the image and call a matrix product. So the
    padding is an operation of its own: of the input where it is narrow, or else of the output.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return nn.Conv2d's output."""
        if not trains_on_cpu(self, x_BCHW):
            return super().forward(x_BCHW)
        padding = self.padding[0]
        sides = (padding, padding, padding, padding)
        if padding == 1:
            return F.conv2d(F.pad(x_BCHW.to(dtype_under_autocast(x_BCHW)), sides), self.weight)
        return F.pad(F.conv2d(x_BCHW, self.weight), sides)


class DilatedConv3x3(nn.Conv2d):
    """A dilated 3x3 convolution that keeps the size, with a faster gradient of the weight, as an ASPP has it.

    A tap is one of the nine elements of the kernel, a matrix of O x C.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return nn.Conv2d's output."""
        dtype = dtype_under_autocast(x_BCHW)
        if not (trains_on_cpu(self, x_BCHW) and dtype in (torch.float32, torch.bfloat16)):
            return super().forward(x_BCHW)
        if self.dilation[0] >= max(x_BCHW.shape[2:]):
            return F.conv2d(x_BCHW, self.weight[:, :, 1:2, 1:2])  # every other tap reads padding only
        with torch.autocast("cpu", enabled=False):
            return _TapGradients.apply(x_BCHW.to(dtype), self.weight, self.dilation[0])


class _TapGradients(torch.autograd.Function):
    """torch's dilated convolution, whose weight gradient is nine matrix products.

    oneDNN computes the weight gradient of a dilated convolution by copying the image nine times, zeros of the padding
    included, into one matrix product. Over 16x16 pixels a tap of dilation 12 reads 4 rows of the image or of the
    columns and padding for the rest, so the nine products over image pixels alone need a third of the multiplications.
    """

    @staticmethod
    def forward(ctx, x_BCHW: Tensor, weight_OC33: Tensor, dilation: int) -> Tensor:
        weight = weight_OC33.to(x_BCHW.dtype)
        ctx.save_for_backward(x_BCHW, weight)
        ctx.dilation, ctx.weight_dtype = dilation, weight_OC33.dtype
        return F.conv2d(x_BCHW, weight, None, 1, dilation, dilation)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BOHW: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        dilation, (height, width) = ctx.dilation, x_BCHW.shape[2:]
        grad_BOHW = grad_BOHW.contiguous(memory_format=torch.channels_last)
        same_size = [1, 1], [dilation, dilation], [dilation, dilation], False, [0, 0], 1
        wanted = [True, False, False]
        grad_x = torch.ops.aten.convolution_backward(grad_BOHW, x_BCHW, weight, None, *same_size, wanted)[0]

        grad_BHWO, x_BHWC = grad_BOHW.permute(0, 2, 3, 1), x_BCHW.permute(0, 2, 3, 1)
        grad_weight_33OC = grad_BOHW.new_empty(3, 3, *weight.shape[:2])
        for row in range(3):
            out_rows, image_rows = _where_tap_reads_image((row - 1) * dilation, height)
            for column in range(3):
                out_columns, image_columns = _where_tap_reads_image((column - 1) * dilation, width)
                grad_pixels = grad_BHWO[:, out_rows, out_columns].flatten(0, 2)
                image_pixels = x_BHWC[:, image_rows, image_columns].flatten(0, 2)
                torch.mm(grad_pixels.t(), image_pixels, out=grad_weight_33OC[row, column])
        grad_weight = grad_weight_33OC.permute(2, 3, 0, 1)
        return grad_x, grad_weight.to(ctx.weight_dtype, memory_format=torch.channels_last), None


def _where_tap_reads_image(shift: int, size: int) -> tuple[slice, slice]:
    """Return the outputs whose tap, `shift` pixels away, is in the image, and the pixels that it reads there."""
    outputs = slice(max(0, -shift), max(0, size - max(0, shift)))
    pixels = slice(max(0, shift), max(0, size - max(0, -shift)))
    return outputs, pixels
