"""DeepLabV3+ with ResNet-50."""

from __future__ import annotations

from torch import nn

from segdistill.nets.heads import V3PlusHead, plain_conv3x3
from segdistill.nets.registry import SegmentationNet
from segdistill.nets.resnet import ResNetBackbone

IMAGENET_BACKBONE = "resnet50"
NATIVE_STRIDE = 4  # input pixels per logit


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator."""
    backbone = ResNetBackbone("resnet50", output_stride)
    return SegmentationNet(backbone, V3PlusHead(backbone, classes, output_stride, plain_conv3x3))
