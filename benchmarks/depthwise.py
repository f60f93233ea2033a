"""Depthwise convolutions of the students in a training step on a CPU: torch's way against ours.

    python benchmarks/depthwise.py [--threads 2] [--seconds 1]

Each layer runs forward and backward in turn both ways, on a channels-last batch of 4 crops of 256x256 pixels. To see
another processor, hide instructions: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segdistill.nets.depthwise import CPU_HAS_BFLOAT16, DepthwiseConv2d
from segdistill.nets.device import keep_freed_memory

BATCH = 4


class Layer(NamedTuple):
    """A depthwise convolution of `channels` over size x size pixels; `network` says where it is found."""

    network: str
    channels: int
    size: int
    kernel: int
    stride: int
    dilation: int
    padding: int

    def __str__(self) -> str:
        extra = f", stride {self.stride}" * (self.stride > 1) + f", dilation {self.dilation}" * (self.dilation > 1)
        return f"{self.channels}x{self.size}x{self.size}, {self.kernel}x{self.kernel}{extra}"


LAYERS = (
    Layer("MobileNetV2", 960, 20, 3, 1, 2, 0),
    Layer("MobileNetV2, output stride 8", 960, 40, 3, 1, 4, 0),
    Layer("MobileNetV2", 96, 129, 3, 2, 1, 0),
    Layer("MobileNetV2", 144, 66, 3, 2, 1, 0),
    Layer("MobileNetV2", 192, 34, 3, 2, 1, 0),
    Layer("MobileNetV3", 72, 64, 5, 2, 1, 2),
    Layer("MobileNetV3", 120, 32, 5, 1, 1, 2),
    Layer("MobileNetV3", 960, 16, 5, 1, 2, 4),
    Layer("separable ASPP", 320, 16, 3, 1, 6, 6),
    Layer("separable ASPP", 320, 16, 3, 1, 12, 12),
    Layer("separable ASPP", 320, 16, 3, 1, 18, 18),
    Layer("MobileNetV2", 144, 66, 3, 1, 1, 0),
    Layer("MobileNetV2", 384, 18, 3, 1, 1, 0),
)


class Row(NamedTuple):
    """Median milliseconds of forward and backward, and the median of their ratios round by round."""

    layer: str
    network: str
    precision: str
    torch_ms: float
    ours_ms: float
    ratio: float


def measure(threads: int, seconds: float) -> list[Row]:
    """Return a row for each layer and precision that this processor computes, each measured for `seconds`."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as trainings do: otherwise page faults take longer than small layers
    dtypes = (torch.bfloat16, torch.float32) if CPU_HAS_BFLOAT16 else (torch.float32,)
    return [_row(layer, dtype, seconds) for layer in LAYERS for dtype in dtypes]


def _row(layer: Layer, dtype: torch.dtype, seconds: float) -> Row:
    torch.manual_seed(0)
    sizes = layer.channels, layer.channels, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.channels
    image = torch.randn(BATCH, layer.channels, layer.size, layer.size, dtype=dtype)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    ways = [_pass(conv(*sizes, bias=False), image, dtype) for conv in (nn.Conv2d, DepthwiseConv2d)]
    taken_ms: list[tuple[float, float]] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(taken_ms) < 10:
        order = (0, 1) if len(taken_ms) % 2 else (1, 0)  # the second finds warmer caches
        taken = {way: _milliseconds(ways[way]) for way in order}
        taken_ms.append((taken[0], taken[1]))
    taken_ms = taken_ms[2:]
    torch_ms, ours_ms = (statistics.median(column) for column in zip(*taken_ms, strict=True))
    ratio = statistics.median(of_torch / ours for of_torch, ours in taken_ms)
    precision = str(dtype).removeprefix("torch.")
    return Row(str(layer), layer.network, precision, round(torch_ms, 2), round(ours_ms, 2), round(ratio, 2))


def _pass(conv: nn.Module, image: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a call that runs `conv` forward and backward as a training step does."""

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return conv(image)

    gradient = torch.randn_like(forward())

    def run() -> None:
        image.grad = conv.weight.grad = None
        forward().backward(gradient)

    return run


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time depthwise convolutions in a training step.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer and precision")
    options = parser.parse_args()
    print(f"{'layer':36}{'network':30}{'precision':10}{'torch ms':>10}{'ours ms':>10}{'ratio':>7}")
    for row in measure(options.threads, options.seconds):
        print(f"{row.layer:36}{row.network:30}{row.precision:10}{row.torch_ms:10}{row.ours_ms:10}{row.ratio:7}")


if __name__ == "__main__":
    main()
