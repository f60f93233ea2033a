"""Backbones: images in, features at two strides out. torchvision is imported where it is used (it costs a second).

Shapes: B batch, C channels, H/W pixels; low-level features at stride 4, the output at the output stride.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from segdistill.nets.mobilenet import LOW_LEVEL_BLOCKS, PaddedMobileNetV2


class ResNetBackbone(nn.Module):
    """torchvision's ResNet-50 or -101 without its classifier, dilated from the output stride on."""

    low_channels = 256
    out_channels = 2048

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        dilated = [False, output_stride == 8, True]  # layers 2, 3 and 4
        resnet = get_model(name, weights=None, replace_stride_with_dilation=dilated)
        for child_name, child in resnet.named_children():
            if child_name not in ("avgpool", "fc"):
                self.add_module(child_name, child)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """images_BCHW -> low-level features (256 channels, stride 4) and output (2048 channels, output stride)."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images_BCHW))))
        low = self.layer1(stem)
        return low, self.layer4(self.layer3(self.layer2(low)))


class TorchvisionMobileNetV2(nn.Module):
    """torchvision's MobileNetV2 without its last 1x1 convolution, dilated from the output stride on."""

    low_channels = 24
    out_channels = 320

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        from torchvision.models import mobilenet_v2

        self.features = mobilenet_v2(weights=None).features[:-1]
        _dilate(self.features, output_stride)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """images_BCHW -> low-level features (24 channels, stride 4) and output (320 channels, output stride)."""
        low = self.features[:LOW_LEVEL_BLOCKS](images_BCHW)
        return low, self.features[LOW_LEVEL_BLOCKS:](low)


def _dilate(features: nn.Sequential, output_stride: int) -> None:
    """Turn the strides beyond `output_stride` into dilation of the 3x3 convolutions that follow."""
    current_stride, dilation = 1, 1
    for layer in features.modules():
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1):
            continue
        layer.dilation = layer.padding = (dilation, dilation)
        stride = layer.stride[0]
        if current_stride == output_stride:
            layer.stride = (1, 1)
            dilation *= stride  # from the next convolution on: this one still reads undecimated features
        else:
            current_stride *= stride


# By name: output stride -> backbone. Each has `low_channels` and `out_channels`.
BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "resnet50": lambda output_stride: ResNetBackbone("resnet50", output_stride),
    "resnet101": lambda output_stride: ResNetBackbone("resnet101", output_stride),
    "mobilenet": PaddedMobileNetV2,
    "mobilenet_tv": TorchvisionMobileNetV2,
}
