"""DDRNet-23-slim: a branch at stride 8 and one down to stride 64, which exchange features twice.

Hong et al., arXiv:2101.06085; under the names of the public checkpoints.

Shapes: B batch, C channels (logits: classes), H/W pixels, h/w at stride 8.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from segdistill.nets.mobilenet import init_fan_out
from segdistill.nets.realtime import (
    DAPPM,
    AuxiliaryNet,
    LabelLossFn,
    SegmentHead,
    basic_layer,
    bottleneck_layer,
    conv_bn,
    stem,
)
from segdistill.nets.resize import upsample

IMAGENET_BACKBONE = None  # torchvision has no weights for it
OUTPUT_STRIDES = (8,)
NATIVE_STRIDE = 8  # input pixels per logit

CHANNELS = 32  # of the stem; each deeper layer has twice as many, and the branch at stride 8 keeps 64
HEAD_CHANNELS, POOL_CHANNELS = 64, 128
AUXILIARY_WEIGHT = 0.4  # of the auxiliary head's label loss


class DDRNet23Slim(AuxiliaryNet):
    """Two branches from layer 3 on: `context`, in the layers without a line under their names, and `detail`."""

    auxiliary_heads = ("seghead_extra",)

    def __init__(self, classes: int) -> None:
        super().__init__()
        low, middle, high, deep = (CHANNELS * factor for factor in (1, 2, 4, 8))
        self.conv1 = stem(low)
        self.layer1 = basic_layer(low, low, 2)
        self.layer2 = basic_layer(low, middle, 2, stride=2)
        self.layer3 = basic_layer(middle, high, 2, stride=2)
        self.layer4 = basic_layer(high, deep, 2, stride=2)
        self.compression3 = conv_bn(high, middle, 1)
        self.compression4 = conv_bn(deep, middle, 1)
        self.down3 = conv_bn(middle, high, 3, stride=2)
        self.down4 = nn.Sequential(*conv_bn(middle, high, 3, stride=2), nn.ReLU(), *conv_bn(high, deep, 3, stride=2))
        self.layer3_ = basic_layer(middle, middle, 2)
        self.layer4_ = basic_layer(middle, middle, 2)
        self.layer5_ = bottleneck_layer(middle, middle, 1)
        self.layer5 = bottleneck_layer(deep, deep, 1, stride=2)
        self.spp = DAPPM(2 * deep, POOL_CHANNELS, high)
        self.seghead_extra = SegmentHead(middle, HEAD_CHANNELS, classes)
        self.final_layer = SegmentHead(high, HEAD_CHANNELS, classes)
        init_fan_out(self)

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits_BChw at stride 8; in training mode also those of the auxiliary head."""
        return self.features_and_logits(images_BCHW)[1]

    def features_and_logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Return the sum of both branches, at stride 8, and the logits."""
        shared = F.relu(self.layer2(F.relu(self.layer1(self.conv1(images_BCHW)))))
        context, detail = self.layer3(shared), self.layer3_(shared)
        size = detail.shape[-2:]

        from_context = upsample(self.compression3(F.relu(context)), size)
        context = F.relu(context + self.down3(F.relu(detail)))
        detail = detail + from_context
        exchanged_once = detail

        context, detail = self.layer4(context), self.layer4_(F.relu(detail))
        from_context = upsample(self.compression4(F.relu(context)), size)
        context = F.relu(context + self.down4(F.relu(detail)))
        detail = F.relu(detail + from_context)

        context = upsample(self.spp(self.layer5(context)), size)
        features = self.layer5_(detail) + context
        logits = self.final_layer(features)
        return features, (logits, self.seghead_extra(exchanged_once)) if self.training else logits

    def auxiliary_loss(
        self, auxiliary: list[Tensor], pixels_BCHW: Tensor, labels_BHW: Tensor, label_loss: LabelLossFn
    ) -> Tensor:
        """Return the label loss of the auxiliary head, with the weight of the paper."""
        (extra_BChw,) = auxiliary
        return AUXILIARY_WEIGHT * label_loss(upsample(extra_BChw.float(), labels_BHW.shape[-2:]), labels_BHW)


def build(classes: int, output_stride: int) -> nn.Module:
    """Return the network with fresh weights from torch's global generator; it is for one output stride."""
    return DDRNet23Slim(classes)
