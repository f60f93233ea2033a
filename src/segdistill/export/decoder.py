"""The decoder of DeepLabV3+ for ONNX files: it applies the 3x3 convolution before upsampling, not after it.

A 3x3 convolution is a sum of nine 1x1 convolutions, each shifted by one position. A 1x1 convolution and bilinear
upsampling commute. So the nine run on the small map, as one convolution to nine times the channels. On the large map
remain upsampling, shift and sum: one matrix product along each axis. The logits are the same up to rounding, for a
quarter of the multiplications of that layer.

Shapes: B batch, O output channels of the 3x3 convolution, h/w at the output stride, H/W at stride 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segdistill.nets.heads import LOW_LEVEL_CHANNELS, V3PlusHead

TAPS = 3  # positions of the convolution along one axis
BLOCKS = (2, 4, 8)  # numbers of blocks that an axis is cut into, where they divide it


class Linear1x1(nn.Module):
    """Compute a 1x1 convolution (B, C, h, w) -> (B, D, h, w) as a matrix product on channels-last pixels.

    Quantised, the product reads integers and returns float32; a quantised convolution returns integers.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.detach().flatten(1)), conv.bias

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return the convolution of x_BChw, (B, D, h, w)."""
        return self.on_channels_last(x_BChw.permute(0, 2, 3, 1))

    def on_channels_last(self, x_BhwC: Tensor) -> Tensor:
        """Return the convolution of x_BhwC, (B, D, h, w)."""
        batch, height, width, channels = x_BhwC.shape
        pixels = F.linear(x_BhwC.reshape(-1, channels), self.weight, self.bias)
        return pixels.reshape(batch, height, width, len(self.weight)).permute(0, 3, 1, 2)


def axis_products(size_in: Tensor, size_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one axis of "upsample, shift by -1, 0 and +1 position, sum" as matrix products.

    Upsampling is bilinear with half-pixel centres and repeats the edges; the convolution pads them with zeros. An
    output depends on few inputs, so the axis is cut into blocks of outputs that each read the inputs around them.

    Args:
        size_in: inputs along the axis, 0-dim int64.
        size_out: outputs along the axis, 0-dim int64, more than inputs.

    Returns:
        cells: int64 (blocks * reach,), the inputs that each block reads, block by block.
        weights: float32 (blocks, outputs of a block, reach * TAPS), to multiply the inputs with; the last axis runs
            over inputs, then taps.
        blocks: 0-dim int64.
    """
    blocks = torch.tensor((1, *BLOCKS))[(size_out % torch.tensor(BLOCKS) == 0).sum()]
    block_size = size_out // blocks
    ratio = size_in.float() / size_out.float()
    last = size_in - 1

    def sources(outputs: Tensor) -> Tensor:
        """Return the positions of outputs, counted in inputs."""
        return torch.minimum(((outputs.float() + 0.5) * ratio - 0.5).clamp(min=0), last.float())

    starts = _arange(blocks) * block_size
    first_cells = sources(starts - 1).floor().long()
    reach = (sources(starts + block_size).floor().long() - first_cells).amax() + 2
    cells = first_cells.unsqueeze(1) + _arange(reach)
    outputs = (starts.unsqueeze(1) + _arange(block_size)).unsqueeze(2) + torch.arange(-1, TAPS - 1)
    distance = (sources(outputs).unsqueeze(2) - cells.float()[:, None, :, None]).abs()
    inside = ((outputs >= 0) & (outputs < size_out)).float().unsqueeze(2)
    weights = (1 - distance).clamp(min=0) * inside
    return torch.minimum(cells, last).flatten(), weights.flatten(2), blocks


def _arange(count: Tensor) -> Tensor:
    """Return 0 to count - 1. A traced `count` stays a variable of the graph; an int would fix the size of frames."""
    return torch.arange(count)  # type: ignore[call-overload]  # torch's stubs leave out 0-dim tensors


class FactoredDecoder(nn.Module):
    """Compute a `V3PlusHead` in eval mode, one with a plain 3x3 convolution, in another order."""

    def __init__(self, head: V3PlusHead) -> None:
        super().__init__()
        conv3x3, batch_norm, _, last = head.classifier
        assert isinstance(conv3x3, nn.Conv2d) and isinstance(batch_norm, nn.BatchNorm2d) and isinstance(last, nn.Conv2d)
        conv = fuse_conv_bn_eval(conv3x3, batch_norm)
        self.channels = conv.out_channels
        self.project, self.aspp = head.project, head.aspp
        self.low = nn.Conv2d(LOW_LEVEL_CHANNELS, self.channels, TAPS, padding=1)
        self.taps = nn.Conv2d(conv.in_channels - LOW_LEVEL_CHANNELS, TAPS * TAPS * self.channels, 1, bias=False)
        self.classes = Linear1x1(last)
        low, high = conv.weight.detach().split((LOW_LEVEL_CHANNELS, self.taps.in_channels), dim=1)
        self.low.weight, self.low.bias = nn.Parameter(low.contiguous()), conv.bias
        # Output channels run over vertical tap, horizontal tap, O.
        self.taps.weight = nn.Parameter(high.permute(2, 3, 0, 1).reshape(self.taps.weight.shape))

    def forward(self, low_BChw: Tensor, out_BChw: Tensor) -> Tensor:
        """Return logits at stride 4 of low-level features and output."""
        (batch, _, rows, columns), (_, _, height, width) = out_BChw.shape, low_BChw.shape
        column_cells, column_weights, column_blocks = axis_products(torch.as_tensor(columns), torch.as_tensor(width))
        row_cells, row_weights, row_blocks = axis_products(torch.as_tensor(rows), torch.as_tensor(height))

        x = self.taps(self.aspp(out_BChw)).permute(0, 2, 3, 1)
        x = x.reshape(batch, rows, columns, TAPS, TAPS * self.channels).permute(0, 1, 3, 2, 4)
        x = x.index_select(3, column_cells).reshape(batch, rows * TAPS, column_blocks, -1, self.channels)
        x = (column_weights @ x).reshape(batch, rows, TAPS * width * self.channels)
        x = x.index_select(1, row_cells).reshape(batch, row_blocks, -1, width * self.channels)
        x = (row_weights @ x).reshape(batch, height, width, self.channels)
        low_BHWO = self.low(self.project(low_BChw)).permute(0, 2, 3, 1)
        return self.classes.on_channels_last(F.relu(low_BHWO + x))
