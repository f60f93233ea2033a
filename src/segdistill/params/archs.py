"""The networks by name, as params.yaml may name them: facts only, so that params are checked without loading torch.

Each name is also a file of `segdistill/networks`, which builds the network and owns all that its results depend on.
"""

from __future__ import annotations

from typing import NamedTuple

from segdistill.core.errors import UserError

# Strides and unpadded convolutions leave nothing of images with a smaller side.
MIN_PX = 32


class Arch(NamedTuple):
    """What a network is, the output strides it can be built at, and whether torchvision has weights to start from."""

    description: str
    output_strides: tuple[int, ...] = (16, 8)
    has_imagenet_weights: bool = True


_SEPARABLE = "DeepLabV3+ with depthwise-separable convolutions in the head"

ARCHS: dict[str, Arch] = {
    "deeplabv3_resnet50": Arch("DeepLabV3, ResNet-50"),
    "deeplabv3_resnet101": Arch("DeepLabV3, ResNet-101"),
    "deeplabv3_mobilenet": Arch("DeepLabV3, MobileNetV2 of the public checkpoints"),
    "deeplabv3_mobilenet_tv": Arch("DeepLabV3, torchvision's MobileNetV2"),
    "deeplabv3_mobilenet_lite": Arch("DeepLabV3 without batch norm in the head, MobileNetV2"),
    "deeplabv3plus_resnet50": Arch("DeepLabV3+, ResNet-50"),
    "deeplabv3plus_resnet101": Arch("DeepLabV3+, ResNet-101"),
    "deeplabv3plus_mobilenet": Arch("DeepLabV3+, MobileNetV2 of the public checkpoints"),
    "deeplabv3plus_mobilenet_tv": Arch("DeepLabV3+, torchvision's MobileNetV2"),
    "deeplabv3plus_resnet50_separable": Arch(f"{_SEPARABLE}, ResNet-50"),
    "deeplabv3plus_resnet101_separable": Arch(f"{_SEPARABLE}, ResNet-101"),
    "deeplabv3plus_mobilenet_separable": Arch(f"{_SEPARABLE}, MobileNetV2"),
    "deeplabv3_mobilenet_v3_large": Arch("torchvision's DeepLabV3, MobileNetV3-Large", (16,)),
    "lraspp_mobilenet_v3_large": Arch("torchvision's Lite R-ASPP, MobileNetV3-Large", (16,)),
    "ddrnet23_slim": Arch("DDRNet-23-slim", (8,), has_imagenet_weights=False),
    "pidnet_s": Arch("PIDNet-S", (8,), has_imagenet_weights=False),
}


def check_name(arch: str) -> None:
    """Raise a UserError when there is no network of that name."""
    if arch not in ARCHS:
        raise UserError(f"no network is named {arch!r:.40}; allowed: {', '.join(ARCHS)}")


def check_arch(arch: str, output_stride: int) -> None:
    """Raise a UserError when there is no network of that name, or when it cannot be built at that output stride."""
    check_name(arch)
    allowed = ARCHS[arch].output_strides
    if type(output_stride) is not int or output_stride not in allowed:
        raise UserError(
            f"{arch} cannot have output stride {output_stride!r:.40}; allowed: {' or '.join(map(str, sorted(allowed)))}"
        )
