"""The networks by name: what each is made of. Facts only, so that params can be checked without loading torch."""

from __future__ import annotations

from typing import NamedTuple

# Strides and unpadded convolutions leave nothing of images with a side of less.
LEAST_PX = 32


class Arch(NamedTuple):
    """What a network is made of, and the output strides it can be built at.

    native_stride: input pixels per logit before the last upsampling; None where it is the output stride.
    """

    description: str
    backbone: str
    head: str
    native_stride: int | None = None
    output_strides: tuple[int, ...] = (16, 8)


_SEPARABLE = "DeepLabV3+ with depthwise-separable convolutions in the head"

ARCHS: dict[str, Arch] = {
    "deeplabv3_resnet50": Arch("DeepLabV3, ResNet-50", "resnet50", "v3"),
    "deeplabv3_resnet101": Arch("DeepLabV3, ResNet-101", "resnet101", "v3"),
    "deeplabv3_mobilenet": Arch("DeepLabV3, MobileNetV2 of the public checkpoints", "mobilenet", "v3"),
    "deeplabv3_mobilenet_tv": Arch("DeepLabV3, torchvision's MobileNetV2", "mobilenet_tv", "v3"),
    "deeplabv3_mobilenet_lite": Arch("DeepLabV3 without batch norm in the head, MobileNetV2", "mobilenet", "v3_lite"),
    "deeplabv3plus_resnet50": Arch("DeepLabV3+, ResNet-50", "resnet50", "v3plus", 4),
    "deeplabv3plus_resnet101": Arch("DeepLabV3+, ResNet-101", "resnet101", "v3plus", 4),
    "deeplabv3plus_mobilenet": Arch("DeepLabV3+, MobileNetV2 of the public checkpoints", "mobilenet", "v3plus", 4),
    "deeplabv3plus_mobilenet_tv": Arch("DeepLabV3+, torchvision's MobileNetV2", "mobilenet_tv", "v3plus", 4),
    "deeplabv3plus_resnet50_separable": Arch(f"{_SEPARABLE}, ResNet-50", "resnet50", "v3plus_separable", 4),
    "deeplabv3plus_resnet101_separable": Arch(f"{_SEPARABLE}, ResNet-101", "resnet101", "v3plus_separable", 4),
    "deeplabv3plus_mobilenet_separable": Arch(f"{_SEPARABLE}, MobileNetV2", "mobilenet", "v3plus_separable", 4),
    "deeplabv3_mobilenet_v3_large": Arch(
        "torchvision's DeepLabV3, MobileNetV3-Large", "mobilenet_v3_large", "torchvision", output_strides=(16,)
    ),
    "lraspp_mobilenet_v3_large": Arch(
        "torchvision's Lite R-ASPP, MobileNetV3-Large", "mobilenet_v3_large", "torchvision", 8, output_strides=(16,)
    ),
}
