"""Training steps on a CPU with torch's own convolutions against ours (nets.fast_convs), in both precisions.

python -m benchmarks.run --only convolutions   # whole steps
python -m benchmarks.convolutions              # layer by layer
python -m benchmarks.convolutions --profile    # what ten steps of the student spend their time on

To see another processor, hide instructions: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.our_loop import STUDENT, OurLoop, bare_steps, our_compute, student_settings
from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.streets import ON_CPU, QUICK, Sizes, streets_on_disk
from segdistill.nets.device import Compute
from segdistill.nets.fast_convs import use_fast_convs
from segdistill.nets.registry import build
from segdistill.prepare.cityscapes import CLASSES

NETWORKS = {
    "": STUDENT,
    "-light": "deeplabv3_mobilenet_lite",
    "-lraspp": "lraspp_mobilenet_v3_large",
    "-teacher": "deeplabv3plus_resnet50",
}
BATCH = 4
PROFILED_STEPS = 10


class Layer(NamedTuple):
    """A convolution over size x size pixels, without bias; `groups` is 1 or the channels."""

    network: str
    channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int
    dilation: int
    padding: int
    groups: int

    def __str__(self) -> str:
        extra = f", stride {self.stride}" * (self.stride > 1) + f", dilation {self.dilation}" * (self.dilation > 1)
        extra += f", padding {self.padding}" * (self.kernel == 1)
        return f"{self.channels}x{self.size}x{self.size}, {self.kernel}x{self.kernel}{extra}"


def depthwise(network: str, channels: int, *geometry: int) -> Layer:
    """Return a layer with one kernel for each channel."""
    return Layer(network, channels, channels, *geometry, channels)


# Of batches of 256x256 pixels. By name: channels and size of the input; kernel, stride, dilation, padding.
LAYERS = (
    depthwise("MobileNetV2", 96, 129, 3, 2, 1, 0),
    depthwise("MobileNetV2", 144, 66, 3, 2, 1, 0),
    depthwise("MobileNetV2", 192, 34, 3, 2, 1, 0),
    depthwise("MobileNetV2", 960, 20, 3, 1, 2, 0),
    depthwise("MobileNetV2, output stride 8", 960, 40, 3, 1, 4, 0),
    depthwise("MobileNetV2", 144, 66, 3, 1, 1, 0),
    depthwise("MobileNetV3", 72, 64, 5, 2, 1, 2),
    depthwise("MobileNetV3", 120, 32, 5, 1, 1, 2),
    depthwise("MobileNetV3", 960, 16, 5, 1, 2, 4),
    depthwise("separable ASPP", 320, 16, 3, 1, 6, 6),
    depthwise("separable ASPP", 320, 16, 3, 1, 12, 12),
    Layer("MobileNetV2", 16, 96, 128, 1, 1, 1, 1, 1),
    Layer("MobileNetV2", 24, 144, 64, 1, 1, 1, 1, 1),
    Layer("MobileNetV2", 96, 576, 16, 1, 1, 1, 1, 1),
    Layer("MobileNetV2", 160, 960, 16, 1, 1, 1, 2, 1),
    Layer("ASPP on MobileNetV2", 320, 256, 16, 3, 1, 12, 12, 1),
    Layer("ASPP on MobileNetV2", 320, 256, 16, 3, 1, 18, 18, 1),
    Layer("ASPP on ResNet", 2048, 256, 16, 3, 1, 12, 12, 1),
)


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 13: whole steps, without a teacher, on a loaded batch."""
    sizes, compute = QUICK if quick else ON_CPU, our_compute()
    ours, rounds = our_loop(sizes, compute), 2 if quick else 9
    precisions = {"bfloat16": compute._replace(dtype=torch.bfloat16), "float32": compute.in_float32()}
    if compute.precision == "float32":  # an emulated bfloat16 takes minutes
        del precisions["bfloat16"]
    rows, seconds = [], {}
    for suffix, arch in NETWORKS.items():
        kinds = {}
        for precision, computed in precisions.items():
            for way in ("torch", "ours"):
                kinds[f"{way}, {precision}"] = training_step(ours, arch, computed, way)
        taken_s = seconds_in_turn(kinds, rounds, warmup=2)
        seconds[arch] = {kind: round(float(np.median(taken)), 4) for kind, taken in taken_s.items()}
        for precision in precisions:
            row = f"13{suffix}" if precision == compute.precision else f"13{suffix}-{precision}"
            ratios = taken_s[f"torch, {precision}"] / taken_s[f"ours, {precision}"]
            rows.append(ratio_row(row, f"training step of {arch}, {precision}: torch's convolutions / ours", ratios))
        if "bfloat16" in precisions:
            ratios = taken_s["ours, float32"] / taken_s["ours, bfloat16"]
            rows.append(ratio_row(f"13{suffix}-precision", f"training step of {arch}: float32 / bfloat16", ratios))
    conditions = {
        "crop_px": list(sizes.crop_px),
        "batch": sizes.batch,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "seconds_per_step": seconds,
    }
    return conditions, rows


def our_loop(sizes: Sizes, compute: Compute) -> OurLoop:
    return OurLoop(streets_on_disk(sizes.frame_px, sizes.frames), sizes, compute, student_settings())


def training_step(ours: OurLoop, arch: str, compute: Compute, way: str) -> Callable[[], None]:
    """Return a call that makes a step on a loaded batch; `way`: whose convolutions, torch or ours."""
    net = compute.place(build(arch, CLASSES)).train()
    return bare_steps(ours.job(way)._replace(net=use_torch_convs(net) if way == "torch" else net, compute=compute), 1)


def use_torch_convs(net: nn.Module) -> nn.Module:
    """Give each convolution of `net` torch's own class again, and return `net`."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = nn.Conv2d
    return net


def forward_and_backward(layer: Layer, dtype: torch.dtype, ours: bool) -> Callable[[], None]:
    """Return a call that runs the layer forward and backward as a training step does."""
    torch.manual_seed(0)
    sizes = layer.channels, layer.out_channels, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups
    conv = nn.Sequential(nn.Conv2d(*sizes, bias=False)).to(memory_format=torch.channels_last).train()
    conv = use_fast_convs(conv) if ours else conv
    image = torch.randn(BATCH, layer.channels, layer.size, layer.size, dtype=dtype)
    image = image.to(memory_format=torch.channels_last).requires_grad_()

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return conv(image)

    gradient = torch.randn_like(forward())

    def run() -> None:
        image.grad = conv[0].weight.grad = None
        forward().backward(gradient)

    return run


def print_profile() -> None:
    """Print the operations of PROFILED_STEPS steps of a student, with torch's convolutions and with ours."""
    ours = our_loop(ON_CPU, our_compute())
    for way in ("torch", "ours"):
        step = training_step(ours, STUDENT, ours.compute, way)
        for _ in range(3):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            for _ in range(PROFILED_STEPS):
                step()
        print(way, profiled.key_averages().table(sort_by="self_cpu_time_total", row_limit=20), sep="\n")


def print_layers(rounds: int) -> None:
    """Print the milliseconds of each layer, forward and backward, with torch's convolution and with ours."""
    dtypes = (torch.bfloat16, torch.float32) if our_compute().precision == "bfloat16" else (torch.float32,)
    print(f"{'layer':36}{'network':30}{'precision':10}{'torch ms':>10}{'ours ms':>10}{'ratio':>7}")
    for layer in LAYERS:
        for dtype in dtypes:
            kinds = {way: forward_and_backward(layer, dtype, ours=way == "ours") for way in ("torch", "ours")}
            taken_ms = {way: 1000 * taken for way, taken in seconds_in_turn(kinds, rounds, warmup=3).items()}
            medians = "".join(f"{np.median(taken_ms[way]):10.2f}" for way in kinds)
            ratio = float(np.median(taken_ms["torch"] / taken_ms["ours"]))
            print(f"{layer!s:36}{layer.network:30}{str(dtype).removeprefix('torch.'):10}{medians}{ratio:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="of each layer")
    parser.add_argument("--profile", action="store_true", help="profile steps in place of the layers")
    options = parser.parse_args()
    if options.profile:
        print_profile()
    else:
        print_layers(options.rounds)


if __name__ == "__main__":
    main()
