"""Depthwise convolution for training on a CPU, around the cases that oneDNN has no fast gradient kernels for.

torch computes a channels-last depthwise convolution with oneDNN. Its kernels for depthwise gradients cover dilation 1,
kernels of at most 3 columns, and in bfloat16 stride 1. All other gradients go to kernels for grouped convolution, which
pad each group of one channel to blocks of 16: a quarter of a student's step. Each case is rewritten here as
convolutions that the depthwise kernels take, equal up to rounding. Forward and backward of 4 images on 2 cores of a
Zen 4, torch's way / this way in ms (`python -m benchmarks.convolutions`); AVX2 by hiding the other instructions:

| layer | bfloat16, AVX512-BF16 | float32, AVX-512 | float32, AVX2 |
|---|---|---|---|
| 960 channels, 20x20, 3x3, dilation 2 | 17.3 / 1.8 | 7.6 / 2.5 | 14.3 / 3.3 |
| 960 channels, 40x40, 3x3, dilation 4 | 65.1 / 6.8 | 30.0 / 9.9 | 225 / 13.9 |
| 320 channels, 16x16, 3x3, dilation 6 | 4.2 / 1.7 | 2.4 / 2.6 | 5.9 / 2.6 |
| 96 channels, 129x129, 3x3, stride 2 | 42.4 / 3.9 | 5.5 | 5.4 |
| 144 channels, 66x66, 3x3, stride 2 | 13.6 / 1.8 | 1.0 | 1.3 |
| 72 channels, 64x64, 5x5, stride 2 | 14.9 / 2.0 | 2.4 | 1.9 |
| 120 channels, 32x32, 5x5 | 6.6 / 1.9 | 3.1 / 2.5 | 2.5 / 2.1 |
| 960 channels, 16x16, 5x5, dilation 2 | 21.7 / 3.9 | 14.5 / 5.9 | 24.2 / 6.6 |

What gains less than 5% stays torch's. The choice follows from the layer, the dtype and the processor alone, so that a
resumed training computes the same bytes.

Shapes: B batch, C channels, H/W pixels of the input, h/w of the output; K rows and columns of the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from segdistill.nets.device import cpu_computes_bfloat16

CPU_HAS_BFLOAT16 = cpu_computes_bfloat16()
MAX_COLUMNS = 3  # the widest kernel that oneDNN has a depthwise weight gradient for


def trains_on_cpu(layer: nn.Module, x_BCHW: Tensor) -> bool:
    """Return whether the layer runs in a training step on a CPU, in the channels-last memory of our trainings."""
    in_training_step = layer.training and torch.is_grad_enabled() and not torch.jit.is_tracing()
    return in_training_step and x_BCHW.device.type == "cpu" and x_BCHW.is_contiguous(memory_format=torch.channels_last)


def dtype_under_autocast(x_BCHW: Tensor) -> torch.dtype:
    """Return the dtype in which nn.Conv2d computes on a CPU."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCHW.dtype


class DepthwiseConv2d(nn.Conv2d):
    """An nn.Conv2d, groups == channels, with the same parameters and output, and faster gradients on a CPU.

    Evaluation, traced graphs, GPUs and memory other than channels-last keep nn.Conv2d's own forward.
    """

    padding: tuple[int, int]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return nn.Conv2d's output, of the dtype that it would have under autocast."""
        if not (trains_on_cpu(self, x_BCHW) and self._is_plain()):
            return super().forward(x_BCHW)
        dtype = dtype_under_autocast(x_BCHW)
        # Without bfloat16 instructions torch's loop takes 30 times as long as float32 and two casts.
        computed_in = torch.float32 if dtype == torch.bfloat16 and not CPU_HAS_BFLOAT16 else dtype
        kernel, stride, padding, dilation = self.kernel_size[0], self.stride[0], self.padding[0], self.dilation[0]
        is_fast = computed_in == dtype and not _is_slow(kernel, stride, dilation, dtype)
        if is_fast or dtype not in (torch.float32, torch.bfloat16):
            return super().forward(x_BCHW)
        with torch.autocast("cpu", enabled=False):
            return depthwise_conv2d(x_BCHW.to(computed_in), self.weight, stride, padding, dilation).to(dtype)

    def _is_plain(self) -> bool:
        """Return whether the layer is one that `depthwise_conv2d` computes: square, zero-padded, without bias."""
        squares = (self.kernel_size, self.stride, self.padding, self.dilation)
        return self.bias is None and self.padding_mode == "zeros" and all(len(set(pair)) == 1 for pair in squares)


def _is_slow(kernel: int, stride: int, dilation: int, dtype: torch.dtype) -> bool:
    """Return whether torch leaves a gradient to oneDNN's kernel for grouped convolution and this module does not."""
    if dilation > 1:
        return stride == 1 and kernel % 2 == 1
    if dtype == torch.bfloat16:
        return kernel > MAX_COLUMNS or stride > 1
    return kernel > MAX_COLUMNS and stride == 1  # with a stride, in float32, the copies cost what the kernel saves


def depthwise_conv2d(x_BCHW: Tensor, weight_C1KK: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """Return out_BChw of x's dtype, to which the weight is cast."""
    if _is_slow(weight_C1KK.shape[3], stride, dilation, x_BCHW.dtype):
        if dilation > 1:
            return _dilated(x_BCHW, weight_C1KK, padding, dilation)
        return _Undilated.apply(x_BCHW, weight_C1KK, stride, padding)
    return F.conv2d(x_BCHW, weight_C1KK.to(x_BCHW.dtype), None, stride, padding, dilation, groups=x_BCHW.shape[1])


class _Undilated(torch.autograd.Function):
    """torch's convolution of dilation 1, with the gradients of `_gradients`."""

    @staticmethod
    def forward(ctx, x_BCHW: Tensor, weight_C1KK: Tensor, stride: int, padding: int) -> Tensor:
        weight = weight_C1KK.to(x_BCHW.dtype)
        ctx.save_for_backward(x_BCHW, weight)
        ctx.stride, ctx.padding, ctx.weight_dtype = stride, padding, weight_C1KK.dtype
        return F.conv2d(x_BCHW, weight, None, stride, padding, groups=x_BCHW.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BChw: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        grad_BChw = grad_BChw.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight = _gradients(grad_BChw, x_BCHW, weight, ctx.stride, (ctx.padding, ctx.padding))
        return grad_x, grad_weight.to(ctx.weight_dtype), None, None


def _dilated(x_BCHW: Tensor, weight_C1KK: Tensor, padding: int, dilation: int) -> Tensor:
    """Pad the image to whole grids (see `_Grids`), convolve them, and crop the output."""
    (channels, height, width), kernel = x_BCHW.shape[1:], weight_C1KK.shape[3]
    if dilation >= max(height, width) and padding == (kernel // 2) * dilation:
        # Every other element of the kernel reads padding only, as in an ASPP over a small crop.
        return x_BCHW * weight_C1KK[:, 0, kernel // 2, kernel // 2, None, None].to(x_BCHW.dtype)
    # The convolution of the grids pads by itself, except that each row of a grid ends with the padding of its right.
    grid_padding, rest = (padding // dilation, 0) if padding % dilation == 0 else (0, padding)
    right, bottom = rest + grid_padding * dilation, rest
    right += -(rest + width + right) % dilation
    bottom += -(rest + height + bottom) % dilation
    # oneDNN has no fast weight gradient for fewer rows than the kernel has, nor for more padding than half of it.
    if (rest + height + bottom) // dilation < kernel or grid_padding > kernel // 2:
        return F.conv2d(x_BCHW, weight_C1KK.to(x_BCHW.dtype), None, 1, padding, dilation, groups=channels)
    if rest or right or bottom:
        x_BCHW = F.pad(x_BCHW, (rest, right, rest, bottom))
    out = _Grids.apply(x_BCHW, weight_C1KK, grid_padding, dilation)
    out_h, out_w = (size + 2 * padding - (kernel - 1) * dilation for size in (height, width))
    if out.shape[2:] != (out_h, out_w):
        out = out[:, :, :out_h, :out_w]
    return out.contiguous(memory_format=torch.channels_last)


class _Grids(torch.autograd.Function):
    """Convolution of dilation d as one of dilation 1 over the d * d interleaved grids of pixels that it never mixes.

    In channels-last memory the grids need no copy. Pixel rows d * i to d * i + d - 1, of W pixels with C channels each,
    are also one row i of d segments, each of W/d pixels with d * C channels. So the image is a view of H/d rows of
    d * W/d pixels, and the kernel is repeated for the d * C channels. Outputs where the kernel reaches from one segment
    into the next are dropped: a fifth of them for 20 x 20 pixels and d = 2, where copying each grid costs more.
    """

    @staticmethod
    def forward(ctx, x_BCHW: Tensor, weight_C1KK: Tensor, grid_padding: int, dilation: int) -> Tensor:
        (batch, channels, height, width), kernel = x_BCHW.shape, weight_C1KK.shape[3]
        rows, segment, grid_channels = height // dilation, width // dilation, dilation * channels
        grids = x_BCHW.permute(0, 2, 3, 1).reshape(batch, rows, dilation * segment, grid_channels).permute(0, 3, 1, 2)
        weight = weight_C1KK.to(x_BCHW.dtype).repeat(dilation, 1, 1, 1)
        padding = grid_padding, kernel // 2  # as many columns as make the output as wide as the image
        out = F.conv2d(grids, weight, None, 1, padding, groups=grid_channels)
        ctx.save_for_backward(grids, weight)
        ctx.padding, ctx.dilation, ctx.dropped = padding, dilation, (kernel // 2 - grid_padding, kernel // 2)
        ctx.x_shape, ctx.weight_dtype = (batch, height, width, channels), weight_C1KK.dtype
        segments = out.permute(0, 2, 3, 1).unflatten(2, (dilation, segment))
        kept = segments[:, :, :, ctx.dropped[0] : segment - ctx.dropped[1]]
        return kept.reshape(batch, -1, kept.shape[3] * dilation, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BChw: Tensor) -> tuple[Tensor | None, ...]:
        grids, weight = ctx.saved_tensors
        batch, channels, rows, columns = grad_BChw.shape
        segments = (batch, rows // ctx.dilation, ctx.dilation, columns // ctx.dilation, ctx.dilation * channels)
        kept = grad_BChw.permute(0, 2, 3, 1).reshape(segments)
        grad_out = F.pad(kept, (0, 0, *ctx.dropped)).flatten(2, 3).permute(0, 3, 1, 2)
        grad_grids, grad_weight = _gradients(grad_out, grids, weight, 1, ctx.padding)
        grad_x = grad_grids.permute(0, 2, 3, 1).reshape(ctx.x_shape).permute(0, 3, 1, 2)
        grad_weight = grad_weight.to(ctx.weight_dtype).unflatten(0, (ctx.dilation, channels)).sum(0)
        return grad_x, grad_weight, None, None


def _gradients(
    grad_BChw: Tensor, x_BCHW: Tensor, weight_C1KK: Tensor, stride: int, padding: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the weight of a convolution of dilation 1, all in channels-last memory."""
    kernel = weight_C1KK.shape[3]
    if stride == 1 and kernel <= MAX_COLUMNS:
        return _torch_gradients((True, True), grad_BChw, x_BCHW, weight_C1KK, stride, padding)
    spread, x_stride = grad_BChw, stride
    if stride > 1 and x_BCHW.dtype == torch.bfloat16:
        # The gradient of x is that of stride 1, with zeros for the outputs that the stride skips.
        batch, channels, height, width = x_BCHW.shape
        all_rows, all_columns = height + 2 * padding[0] - kernel + 1, width + 2 * padding[1] - kernel + 1
        spread = grad_BChw.new_zeros(batch, all_rows, all_columns, channels).permute(0, 3, 1, 2)
        rows, columns = ((size - 1) * stride + 1 for size in grad_BChw.shape[2:])
        spread[:, :, :rows:stride, :columns:stride] = grad_BChw
        x_stride = 1
    grad_x, _ = _torch_gradients((True, False), spread, x_BCHW, weight_C1KK, x_stride, padding)
    if kernel <= MAX_COLUMNS:
        return grad_x, _torch_gradients((False, True), grad_BChw, x_BCHW, weight_C1KK, stride, padding)[1]
    # The weight gradient of at most three columns at a time, each with the part of the image that they reach.
    grad_columns = []
    for first in range(0, kernel, MAX_COLUMNS):
        columns_C1K3 = weight_C1KK[..., first : first + MAX_COLUMNS]
        left = padding[1] - first
        right = (grad_BChw.shape[3] - 1) * stride + columns_C1K3.shape[3] - left - x_BCHW.shape[3]
        reached = F.pad(x_BCHW, (left, right))  # a negative padding crops
        grads = _torch_gradients((False, True), grad_BChw, reached, columns_C1K3, stride, (padding[0], 0))
        grad_columns.append(grads[1])
    return grad_x, torch.cat(grad_columns, dim=3)


def _torch_gradients(
    wanted: tuple[bool, bool], grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return torch's gradients of x and of the weight, None where not wanted."""
    of_layer = [stride, stride], list(padding), [1, 1], False, [0, 0], x.shape[1]
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *of_layer, [*wanted, False])[:2]
