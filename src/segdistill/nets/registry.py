"""Build a network by its name.

The contract of every network: `net(images_BCHW) -> logits_BChw`, float32 normalised images in, logits at the network's
native stride out, before any final resize; `resize.upsample` brings them to pixels. Those of `realtime.AuxiliaryNet`
return more while they train. One that `features.HasFeatures` can teach its features, or learn those of another.

Shapes: B batch, C classes (images: 3, features: channels), H/W pixels, h/w at the native stride, s/t cells of features.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdistill.core.errors import UserError
from segdistill.nets.fast_convs import use_fast_convs
from segdistill.nets.features import HasFeatures
from segdistill.params.archs import arch_facts, check_arch, network_file, split_network

PROBE_PX = (64, 64)  # an image that shows what a network returns


class SegmentationNet(nn.Module):
    """A backbone and the head that fits it."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = head  # the public checkpoints' name

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BChw at the native stride."""
        return self.features_and_logits(images_BCHW)[1]

    def features_and_logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the backbone, at its output stride, and the logits."""
        low_BChw, out_BCst = self.backbone(images_BCHW)
        return out_BCst, self.classifier(low_BChw, out_BCst)


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
        return self.features_and_logits(images_BCHW)[1]

    def features_and_logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output of the backbone, and the logits."""
        features = self.backbone(images_BCHW)
        out_BCst = features["high" if self.reads_low_level else "out"]
        return out_BCst, self.classifier(features if self.reads_low_level else out_BCst)


def network_module(network: str) -> ModuleType:
    """Return the module `segdistill.networks.ARCH` that builds `network`, which is named ARCH or ARCH:BACKBONE.

    Raises:
        UserError: there is no such network, or its file cannot be imported.
    """
    arch, _ = split_network(network)
    check_arch(network, arch_facts(arch).output_strides[0])
    try:
        return importlib.import_module(f"segdistill.networks.{arch}")
    except Exception as error:  # the file may be the user's own, and hold anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == f"{arch}.py"]
        where = f"line {lines[-1]}: " if lines else ""
        raise UserError(f"{network_file(arch)}: cannot be imported ({where}{type(error).__name__}: {error})") from error


def build(network: str, classes: int, output_stride: int = 16) -> nn.Module:
    """Return the network of that name, freshly initialised from torch's global generator."""
    check_arch(network, output_stride)
    module, (arch, backbone) = network_module(network), split_network(network)
    net = module.build(classes, output_stride, *([] if backbone is None else [backbone]))
    if not isinstance(net, nn.Module):
        raise UserError(f"{network_file(arch)}: build returned a {type(net).__name__}; needed is a torch.nn.Module")
    return use_fast_convs(net)


@contextmanager
def in_eval_mode(net: nn.Module) -> Iterator[None]:
    """Let `net` run in eval mode and without gradients; it returns to the mode that it was in."""
    mode = net.training
    try:
        with torch.no_grad():
            net.eval()
            yield
    finally:
        net.train(mode)


def check_logits(net: nn.Module, network: str, classes: int) -> None:
    """Raise a UserError where `net` gives other than logits of so many classes: its file may be the user's own."""
    image = torch.zeros(1, 3, *PROBE_PX)
    with in_eval_mode(net):
        found = net(image)
        both = net.features_and_logits(image) if isinstance(net, HasFeatures) else None
    file = network_file(split_network(network)[0])
    is_right = isinstance(found, Tensor) and found.is_floating_point() and found.ndim == 4 and found.shape[1] == classes
    if not is_right:
        given = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise UserError(
            f"{file}: in eval mode the network returns {given} for an image of {list(PROBE_PX)} pixels; needed are "
            f"logits [1, {classes}, height, width], a class in each channel"
        )
    if both is not None:
        logits = both[1] if isinstance(both, tuple) and len(both) == 2 else None
        if not (isinstance(logits, Tensor) and torch.equal(logits, found)):
            raise UserError(
                f"{file}: needed of features_and_logits are the features, then the logits that forward returns"
            )


def build_of_params(path: str, network: str, classes: int, output_stride: int) -> nn.Module:
    """Return what `build` does; a message about the backbone begins with the section `path` of params.yaml."""
    try:
        return build(network, classes, output_stride)
    except UserError as error:
        raise UserError(f"{path}.{error}" if str(error).startswith("backbone: ") else str(error)) from error


def build_uninitialized(network: str, classes: int, output_stride: int = 16) -> nn.Module:
    """Return the network of that name; its weights are uninitialised until a state dict is loaded."""
    with _NoRandomInit():
        return build(network, classes, output_stride)


class _NoRandomInit(TorchFunctionMode):
    """Skip the random draws of initialisation, which take most of the time that building a network takes."""

    DRAWS = (nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_, Tensor.uniform_, Tensor.normal_)

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        if function in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def native_stride(network: str, output_stride: int = 16) -> int:
    """Return the input pixels per logit of the network of that name."""
    check_arch(network, output_stride)
    return network_module(network).NATIVE_STRIDE or output_stride


def shipped_parameters(net: nn.Module) -> int:
    """Return the number of parameters without those of auxiliary heads, which only training runs."""
    heads = tuple(f"{head}." for head in getattr(net, "auxiliary_heads", ()))
    return sum(weight.numel() for name, weight in net.named_parameters() if not name.startswith(heads))
