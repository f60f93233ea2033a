"""Lite R-ASPP with any backbone of timm that has features at stride 8."""

from __future__ import annotations

from torch import Tensor, nn

from segdistill.nets.registry import SegmentationNet
from segdistill.nets.resize import upsample
from segdistill.nets.timm_backbone import TimmBackbone

NATIVE_STRIDE = 8  # input pixels per logit
CHANNELS = 128


class LiteHead(nn.Module):
    """Weigh channels of the output by their mean over the image, classify, and add the classes of low-level features.

    Howard et al., arXiv:1905.02244, under torchvision's names. A 1x1 convolution and bilinear resizing commute, so this
    classifies before it resizes: the same function, which resizes the classes in place of 128 channels.
    """

    def __init__(self, low_channels: int, out_channels: int, classes: int) -> None:
        super().__init__()
        self.cbr = nn.Sequential(
            nn.Conv2d(out_channels, CHANNELS, 1, bias=False), nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(out_channels, CHANNELS, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low_channels, classes, 1)
        self.high_classifier = nn.Conv2d(CHANNELS, classes, 1)

    def forward(self, low_BChw: Tensor, out_BChw: Tensor) -> Tensor:
        """Return logits_BChw at stride 8 of low-level features and output."""
        high_BChw = self.high_classifier(self.cbr(out_BChw) * self.scale(out_BChw))
        return self.low_classifier(low_BChw) + upsample(high_BChw, low_BChw.shape[-2:])


def build(classes: int, output_stride: int, backbone: str) -> nn.Module:
    """Return the network around a model of timm, with fresh weights from torch's global generator."""
    features = TimmBackbone(backbone, output_stride, low_stride=8)
    return SegmentationNet(features, LiteHead(features.low_channels, features.out_channels, classes))
