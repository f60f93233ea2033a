"""Backbones by name: images in, features at two strides out, the low-level ones at stride 4."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from segdistill.nets.mobilenet import PaddedMobileNetV2, TorchvisionMobileNetV2
from segdistill.nets.resnet import ResNetBackbone

# By name: output stride -> backbone. Each has `low_channels` and `out_channels`.
BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "resnet50": lambda output_stride: ResNetBackbone("resnet50", output_stride),
    "resnet101": lambda output_stride: ResNetBackbone("resnet101", output_stride),
    "mobilenet": PaddedMobileNetV2,
    "mobilenet_tv": TorchvisionMobileNetV2,
}
