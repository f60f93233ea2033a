"""DeepLabV3 with MobileNetV2 of the public checkpoints."""

from __future__ import annotations

from torch import nn

from segdistill.nets.heads import V3Head, plain_conv3x3
from segdistill.nets.mobilenet import PaddedMobileNetV2
from segdistill.nets.registry import SegmentationNet

IMAGENET_BACKBONE = "mobilenet"
NATIVE_STRIDE = None  # input pixels per logit; None is the output stride


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator."""
    backbone = PaddedMobileNetV2(output_stride)
    return SegmentationNet(backbone, V3Head(backbone, classes, output_stride, plain_conv3x3))
