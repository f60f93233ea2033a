"""DeepLabV3+ with any backbone of timm that has features at stride 4."""

from __future__ import annotations

from torch import nn

from segdistill.nets.heads import V3PlusHead, plain_conv3x3
from segdistill.nets.registry import SegmentationNet
from segdistill.nets.timm_backbone import TimmBackbone

NATIVE_STRIDE = 4  # input pixels per logit


def build(classes: int, output_stride: int, backbone: str) -> nn.Module:
    """Return the network around a model of timm, with fresh weights from torch's global generator."""
    features = TimmBackbone(backbone, output_stride, low_stride=4)
    return SegmentationNet(features, V3PlusHead(features, classes, output_stride, plain_conv3x3))
