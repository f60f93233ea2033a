"""The decoder of DeepLabV3+ for ONNX files: its 3x3 convolution is taken before the upsampling, not after it.

A 3x3 convolution is a sum of nine 1x1 convolutions, each shifted by one position. A 1x1 convolution and bilinear
upsampling commute. So the nine run on the small map, as one convolution to nine times the channels, and what is left to
do on the large map is upsampling, shift and sum: one matrix product along each axis. The logits are the same up to
rounding, for a quarter of the multiplications of that layer.

Shapes: B batch, O output channels of the 3x3 convolution, h/w at the output stride, H/W at stride 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from segdistill.nets.heads import LOW_LEVEL_CHANNELS, V3PlusHead

TAPS = 3  # positions of the convolution along one axis
BLOCKS = (2, 4, 8)  # an axis is cut into as many blocks as divide it


class Linear1x1(nn.Module):
    """A 1x1 convolution (B, C, h, w) -> (B, D, h, w), written as a matrix product on channels-last pixels.

    A quantised one takes integers and gives float32, which a quantised convolution does not.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(conv.weight.detach().flatten(1)), conv.bias

    def forward(self, x_BChw: Tensor) -> Tensor:
        """x_BChw -> the same size with as many channels as the convolution gave."""
        return self.on_channels_last(x_BChw.permute(0, 2, 3, 1))

    def on_channels_last(self, x_BhwC: Tensor) -> Tensor:
        """x_BhwC -> (B, D, h, w)."""
        batch, height, width, channels = x_BhwC.shape
        pixels = F.linear(x_BhwC.reshape(-1, channels), self.weight, self.bias)
        return pixels.reshape(batch, height, width, len(self.weight)).permute(0, 3, 1, 2)


def axis_products(size_in: Tensor, size_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bilinear upsampling along one axis, shifted by -1, 0 and +1 position and summed, as matrix products.

    Half-pixel centres; edges are repeated in upsampling, and are zeros to the convolution. An output depends on few
    inputs, so the axis is cut into blocks of outputs that each read the inputs around them.

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
        """Where outputs lie among the inputs."""
        return torch.minimum(((outputs.float() + 0.5) * ratio - 0.5).clamp(min=0), last.float())

    starts = torch.arange(blocks) * block_size
    first_cells = sources(starts - 1).floor().long()
    reach = (sources(starts + block_size).floor().long() - first_cells).amax() + 2
    cells = first_cells.unsqueeze(1) + torch.arange(reach)
    outputs = (starts.unsqueeze(1) + torch.arange(block_size)).unsqueeze(2) + torch.arange(-1, TAPS - 1)
    distance = (sources(outputs).unsqueeze(2) - cells.float()[:, None, :, None]).abs()
    inside = ((outputs >= 0) & (outputs < size_out)).float().unsqueeze(2)
    weights = (1 - distance).clamp(min=0) * inside
    return torch.minimum(cells, last).flatten(), weights.flatten(2), blocks


class FactoredDecoder(nn.Module):
    """`V3PlusHead` in eval mode with a plain 3x3 convolution, computed in another order."""

    def __init__(self, head: V3PlusHead) -> None:
        super().__init__()
        conv = fuse_conv_bn_eval(head.classifier[0], head.classifier[1])
        self.channels = conv.out_channels
        self.project, self.aspp = head.project, head.aspp
        self.low = nn.Conv2d(LOW_LEVEL_CHANNELS, self.channels, TAPS, padding=1)
        self.taps = nn.Conv2d(conv.in_channels - LOW_LEVEL_CHANNELS, TAPS * TAPS * self.channels, 1, bias=False)
        self.classes = Linear1x1(head.classifier[-1])
        with torch.no_grad():
            low, high = conv.weight.split((LOW_LEVEL_CHANNELS, self.taps.in_channels), dim=1)
            self.low.weight.copy_(low)
            self.low.bias.copy_(conv.bias)
            # Output channels run over vertical tap, horizontal tap, O.
            self.taps.weight.copy_(high.permute(2, 3, 0, 1).reshape(self.taps.weight.shape))

    def forward(self, low_BChw: Tensor, out_BChw: Tensor) -> Tensor:
        """Low-level features and output -> logits at stride 4."""
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
