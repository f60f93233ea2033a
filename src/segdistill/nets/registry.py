"""Every network by its name: what it is made of, and how to build it.

The contract of every network: `net(images_BCHW) -> logits_BChw`, float32 normalised images in, logits at the network's
own stride out, before any final resize; `resize.upsample` brings them to pixels.

Shapes: B batch, C classes (images: 3), H/W pixels, h/w at the native stride.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdistill.base.archs import ARCHS, Arch
from segdistill.base.errors import InputError
from segdistill.nets.backbones import BACKBONES
from segdistill.nets.heads import HEADS


class SegmentationNet(nn.Module):
    """A backbone and the head that fits it."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = head  # the public checkpoints' name

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """images_BCHW -> logits_BChw at the native stride."""
        low_BChw, out_BChw = self.backbone(images_BCHW)
        return self.classifier(low_BChw, out_BChw)


class TorchvisionNet(nn.Module):
    """A segmentation network of torchvision, under its own parameter names, without its final resize."""

    def __init__(self, name: str, classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        net = get_model(name, weights=None, weights_backbone=None, num_classes=classes)
        self.backbone = net.backbone
        self.classifier = net.classifier
        # LR-ASPP's head reads both feature maps, DeepLab's only the last one.
        self.reads_low_level = name.startswith("lraspp")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """images_BCHW -> logits_BChw at the native stride."""
        features = self.backbone(images_BCHW)
        return self.classifier(features if self.reads_low_level else features["out"])


def build(arch: str, classes: int, output_stride: int = 16) -> nn.Module:
    """The network named `arch`, freshly initialised from torch's global generator."""
    spec = _checked(arch, output_stride)
    if spec.head == "torchvision":
        return TorchvisionNet(arch, classes)
    backbone = BACKBONES[spec.backbone](output_stride)
    return SegmentationNet(backbone, HEADS[spec.head](backbone, classes, output_stride))


def build_to_load(arch: str, classes: int, output_stride: int = 16) -> nn.Module:
    """The network named `arch` for weights that are loaded next: its own hold whatever was in memory."""
    with _Undrawn():
        return build(arch, classes, output_stride)


class _Undrawn(TorchFunctionMode):
    """Leaves tensors as they are where random numbers would be drawn, most of the time that building a net takes."""

    DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if function in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def native_stride(arch: str, output_stride: int = 16) -> int:
    """Pixels per logit of what the network named `arch` gives."""
    return _checked(arch, output_stride).native_stride or output_stride


def _checked(arch: str, output_stride: int) -> Arch:
    """The table's row; an InputError when there is none, or when it cannot have that output stride."""
    if arch not in ARCHS:
        raise InputError(f"no network is named {arch!r:.40}; allowed: {', '.join(ARCHS)}")
    allowed = ARCHS[arch].output_strides
    if type(output_stride) is not int or output_stride not in allowed:
        raise InputError(
            f"{arch} cannot have output stride {output_stride!r:.40}; allowed: {' or '.join(map(str, sorted(allowed)))}"
        )
    return ARCHS[arch]
