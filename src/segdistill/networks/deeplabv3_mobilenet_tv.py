"""DeepLabV3 with torchvision's MobileNetV2."""

from __future__ import annotations

from torch import nn

from segdistill.nets.heads import V3Head, plain_conv3x3
from segdistill.nets.mobilenet import TorchvisionMobileNetV2
from segdistill.nets.registry import SegmentationNet

IMAGENET_BACKBONE = "mobilenet_tv"
NATIVE_STRIDE = None  # input pixels per logit; None is the output stride


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator."""
    backbone = TorchvisionMobileNetV2(output_stride)
    return SegmentationNet(backbone, V3Head(backbone, classes, output_stride, plain_conv3x3))
