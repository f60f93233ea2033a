"""PIDNet-S: branches for detail and boundaries at stride 8, and one for context down to stride 64.

Xu et al., arXiv:2206.02066; under the names of the public checkpoints.

Shapes: B batch, C channels (logits: classes), H/W pixels, h/w at stride 8, s/t cells of a coarser map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdistill.formats.classes import IGNORE
from segdistill.nets.mobilenet import init_fan_out
from segdistill.nets.realtime import (
    PAPPM,
    AuxiliaryNet,
    BasicBlock,
    LabelLossFn,
    SegmentHead,
    basic_layer,
    bottleneck_layer,
    conv_bn,
    stem,
)
from segdistill.nets.resize import upsample
from segdistill.parallel import ranks

IMAGENET_BACKBONE = None  # torchvision has no weights for it
OUTPUT_STRIDES = (8,)
NATIVE_STRIDE = 8  # input pixels per logit

CHANNELS = 32  # of the stem; each deeper layer of the context has twice as many
HEAD_CHANNELS, POOL_CHANNELS = 128, 96

# Weights of the losses, in section 3.4 of the paper: of the detail head, of the boundaries, of pixels at boundaries.
DETAIL_WEIGHT, BOUNDARY_WEIGHT, AT_BOUNDARY_WEIGHT = 0.4, 20.0, 1.0
IS_BOUNDARY = 0.8  # probability from which a pixel is at a boundary for the last of them
BOUNDARY_PX = 4  # width of a boundary in the targets, as in the public training


class PixelAttention(nn.Module):
    """Mix detail and context pixel by pixel, by how alike they are: the paper's Pag."""

    def __init__(self, channels: int, compared_channels: int) -> None:
        super().__init__()
        self.f_x = conv_bn(channels, compared_channels, 1)
        self.f_y = conv_bn(channels, compared_channels, 1)

    def forward(self, detail_BChw: Tensor, context_BCst: Tensor) -> Tensor:
        """Return features of the size of the detail."""
        size = detail_BChw.shape[-2:]
        alike = torch.sigmoid((self.f_x(detail_BChw) * upsample(self.f_y(context_BCst), size)).sum(1, keepdim=True))
        return (1 - alike) * detail_BChw + alike * upsample(context_BCst, size)


class LightBoundaryAttention(nn.Module):
    """Take detail at boundaries and context elsewhere: the paper's Light-Bag."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_p = conv_bn(channels, channels, 1)
        self.conv_i = conv_bn(channels, channels, 1)

    def forward(self, detail_BChw: Tensor, context_BChw: Tensor, boundary_BChw: Tensor) -> Tensor:
        """Return features of the same size."""
        at_boundary = torch.sigmoid(boundary_BChw)
        detail = self.conv_p(detail_BChw + (1 - at_boundary) * context_BChw)
        return detail + self.conv_i(context_BChw + at_boundary * detail_BChw)


class PIDNetS(AuxiliaryNet):
    """Three branches from layer 3 on: `context` in layers without a suffix, `detail` in `_`, `boundary` in `_d`."""

    auxiliary_heads = ("seghead_p", "seghead_d")

    def __init__(self, classes: int) -> None:
        super().__init__()
        low, middle, high, deep = (CHANNELS * factor for factor in (1, 2, 4, 8))
        self.conv1 = stem(low)
        self.layer1 = basic_layer(low, low, 2)
        self.layer2 = basic_layer(low, middle, 2, stride=2)
        self.layer3 = basic_layer(middle, high, 3, stride=2)
        self.layer4 = basic_layer(high, deep, 3, stride=2)
        self.layer5 = bottleneck_layer(deep, deep, 2, stride=2)
        self.compression3 = conv_bn(high, middle, 1)
        self.compression4 = conv_bn(deep, middle, 1)
        self.pag3 = PixelAttention(middle, low)
        self.pag4 = PixelAttention(middle, low)
        self.layer3_ = basic_layer(middle, middle, 2)
        self.layer4_ = basic_layer(middle, middle, 2)
        self.layer5_ = bottleneck_layer(middle, middle, 1)
        self.layer3_d = BasicBlock(middle, low, stride=1, activates=False)
        self.layer4_d = bottleneck_layer(low, low, 1)
        self.diff3 = conv_bn(high, low, 3)
        self.diff4 = conv_bn(deep, middle, 3)
        self.spp = PAPPM(2 * deep, POOL_CHANNELS, high)
        self.dfm = LightBoundaryAttention(high)
        self.layer5_d = bottleneck_layer(middle, middle, 1)
        self.seghead_p = SegmentHead(middle, HEAD_CHANNELS, classes)
        self.seghead_d = SegmentHead(middle, low, 1)
        self.final_layer = SegmentHead(high, HEAD_CHANNELS, classes)
        init_fan_out(self)

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return logits_BChw at stride 8; in training mode also those of the detail and of the boundary head."""
        return self.features_and_logits(images_BCHW)[1]

    def features_and_logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor, Tensor]]:
        """Return the mix of all branches, at stride 8, and the logits."""
        shared = F.relu(self.layer2(F.relu(self.layer1(self.conv1(images_BCHW)))))
        detail, boundary = self.layer3_(shared), self.layer3_d(shared)
        size = detail.shape[-2:]

        context = F.relu(self.layer3(shared))
        # The auxiliary heads read features after ReLU, as the public code does.
        detail_3 = F.relu(self.pag3(detail, self.compression3(context)))
        boundary = F.relu(boundary + upsample(self.diff3(context), size))

        context = F.relu(self.layer4(context))
        detail = F.relu(self.pag4(self.layer4_(detail_3), self.compression4(context)))
        boundary_4 = F.relu(self.layer4_d(boundary) + upsample(self.diff4(context), size))

        detail, boundary = self.layer5_(detail), self.layer5_d(boundary_4)
        context = upsample(self.spp(self.layer5(context)), size)
        features = self.dfm(detail, context, boundary)
        logits = self.final_layer(features)
        return features, (logits, self.seghead_p(detail_3), self.seghead_d(boundary_4)) if self.training else logits

    def auxiliary_loss(
        self, auxiliary: list[Tensor], pixels_BCHW: Tensor, labels_BHW: Tensor, label_loss: LabelLossFn
    ) -> Tensor:
        """Return the losses of detail and boundaries, and the label loss again at the boundaries found, weighted."""
        detail_BCHW, boundary_B1HW = (upsample(each.float(), labels_BHW.shape[-2:]) for each in auxiliary)
        boundary_BHW = boundary_B1HW[:, 0]
        at_boundary = torch.where(boundary_BHW.sigmoid() > IS_BOUNDARY, labels_BHW, IGNORE)
        return (
            DETAIL_WEIGHT * label_loss(detail_BCHW, labels_BHW)
            + BOUNDARY_WEIGHT * boundary_loss(boundary_BHW, labels_BHW)
            + AT_BOUNDARY_WEIGHT * label_loss(pixels_BCHW, at_boundary)
        )


def boundary_loss(logits_BHW: Tensor, labels_BHW: Tensor) -> Tensor:
    """Return the binary cross entropy of boundaries, in which both kinds of pixels weigh the same; mean over pixels.

    Void pixels count for nothing; a batch without boundaries has loss 0.
    """
    valid = labels_BHW != IGNORE
    boundary = is_boundary(labels_BHW) & valid
    valid_pixels = ranks.mean_count(valid.sum(), 1)
    share = ranks.mean_count(boundary.sum()) / valid_pixels
    weights = torch.where(boundary, 1 - share, share) * valid
    loss_BHW = F.binary_cross_entropy_with_logits(logits_BHW, boundary.float(), weights, reduction="none")
    return loss_BHW.sum() / valid_pixels


def is_boundary(labels_BHW: Tensor) -> Tensor:
    """Return for each pixel whether the BOUNDARY_PX + 1 pixels square around it holds two classes, void not counted."""
    window, valid = BOUNDARY_PX + 1, labels_BHW != IGNORE
    largest_first = torch.stack([labels_BHW.where(valid, -IGNORE), -labels_BHW.where(valid, IGNORE)]).float()
    largest, minus_smallest = F.max_pool2d(largest_first, window, stride=1, padding=window // 2)
    return largest > -minus_smallest


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator; it is for one output stride."""
    return PIDNetS(classes)
