"""Build a network by its name.

The contract of every network: `net(images_BCHW) -> logits_BChw`, float32 normalised images in, logits at the network's
native stride out, before any final resize; `resize.upsample` brings them to pixels. Those of `realtime.AuxiliaryNet`
return more while they train.

Shapes: B batch, C classes (images: 3), H/W pixels, h/w at the native stride.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdistill.nets.fast_convs import use_fast_convs
from segdistill.params.archs import check_arch, check_name


class SegmentationNet(nn.Module):
    """A backbone and the head that fits it."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = head  # the public checkpoints' name

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BChw at the native stride."""
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
        """Return logits_BChw at the native stride."""
        features = self.backbone(images_BCHW)
        return self.classifier(features if self.reads_low_level else features["out"])


def network_module(arch: str) -> ModuleType:
    """Return the module `segdistill.networks.ARCH`; raise a UserError when there is no such network."""
    check_name(arch)
    return importlib.import_module(f"segdistill.networks.{arch}")


def build(arch: str, classes: int, output_stride: int = 16) -> nn.Module:
    """Return the network named `arch`, freshly initialised from torch's global generator.

    Raises:
        UserError: there is no such network, or it cannot have that output stride.
    """
    check_arch(arch, output_stride)
    return use_fast_convs(network_module(arch).build(classes, output_stride))


def build_uninitialized(arch: str, classes: int, output_stride: int = 16) -> nn.Module:
    """Return the network named `arch`; its weights are uninitialised until a state dict is loaded."""
    with _NoRandomInit():
        return build(arch, classes, output_stride)


class _NoRandomInit(TorchFunctionMode):
    """Skip the random draws of initialisation, which take most of the time that building a network takes."""

    DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if function in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def native_stride(arch: str, output_stride: int = 16) -> int:
    """Return the input pixels per logit of the network named `arch`."""
    check_arch(arch, output_stride)
    return network_module(arch).NATIVE_STRIDE or output_stride


def shipped_parameters(net: nn.Module) -> int:
    """Return the number of parameters without those of auxiliary heads, which only training runs."""
    heads = tuple(f"{head}." for head in getattr(net, "auxiliary_heads", ()))
    return sum(weight.numel() for name, weight in net.named_parameters() if not name.startswith(heads))
