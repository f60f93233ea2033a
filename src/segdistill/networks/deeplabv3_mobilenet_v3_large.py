"""torchvision's DeepLabV3 with MobileNetV3-Large."""

from __future__ import annotations

from torch import nn

from segdistill.nets.registry import TorchvisionNet

IMAGENET_BACKBONE = "mobilenet_v3_large"
OUTPUT_STRIDES = (16,)  # torchvision has it at this one
NATIVE_STRIDE = None  # input pixels per logit; None is the output stride


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator."""
    return TorchvisionNet("deeplabv3_mobilenet_v3_large", classes)
