"""torchvision's Lite R-ASPP with MobileNetV3-Large."""

from __future__ import annotations

from torch import nn

from segdistill.nets.registry import TorchvisionNet

IMAGENET_BACKBONE = "mobilenet_v3_large"
OUTPUT_STRIDES = (16,)  # torchvision has it at this one
NATIVE_STRIDE = 8  # input pixels per logit


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator."""
    return TorchvisionNet("lraspp_mobilenet_v3_large", classes)
