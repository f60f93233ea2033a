"""Weights on disk: our safetensors with a header, public checkpoints, torchvision's ImageNet backbones.

Weights that do not fit are an error. No file can run code: `torch.load` reads tensors and plain containers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file
from segdistill.formats.header import KEY, Header, read_header
from segdistill.nets.registry import build_uninitialized, network_module

WRAPPERS = ("model_state", "state_dict", "model")  # where training scripts put the state dict in what they save
SHOWN = 5  # keys named in full

# torchvision's enum of weights and the member whose training the public segmentation checkpoints started from.
IMAGENET = {
    "resnet50": ("ResNet50_Weights", "IMAGENET1K_V1"),
    "resnet101": ("ResNet101_Weights", "IMAGENET1K_V1"),
    "mobilenet": ("MobileNet_V2_Weights", "IMAGENET1K_V1"),
    "mobilenet_tv": ("MobileNet_V2_Weights", "IMAGENET1K_V1"),
    "mobilenet_v3_large": ("MobileNet_V3_Large_Weights", "IMAGENET1K_V1"),
}


def save_net(path: str | Path, net: nn.Module, header: Header) -> None:
    """Write the weights of `net` with `header`, atomically."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    content = save(state, metadata={KEY: header.text()})
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)  # the message of safetensors' own writer names no file when the disk is full


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, in the order of the file."""
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors file ({error})") from None


def load_net(path: str | Path, expected: Header | None = None) -> tuple[nn.Module, Header]:
    """Rebuild the network that `path` holds, in eval mode, and return it with its header.

    Raises:
        UserError: its weights do not fit, or its header describes another network than `expected`.
    """
    header = read_header(path)
    if expected is not None:
        header.check_is(expected, path)
    net = build_uninitialized(header.arch, header.classes, header.output_stride)
    load_state(net, read_state(path), source=str(path))
    return net.eval(), header


def read_weights(file: str | Path, params_path: str) -> dict[str, Tensor]:
    """Return the state dict of a .safetensors, .pth or .pt file that the params path `params_path` names."""
    file = Path(file)
    if not file.is_file():
        raise UserError(f"{params_path}: found {str(file)!r}; no such file")
    return read_state(file) if file.suffix.lower() == ".safetensors" else read_torch_checkpoint(file)


class _Ignored:
    """Takes the place of NumPy values in a checkpoint (best scores), so that reading it runs none of NumPy's code."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_IGNORED_GLOBALS: list[Any] = [
    (_Ignored, name)
    for name in (
        "numpy.dtype",
        "numpy.ndarray",
        *(f"{core}.multiarray.{name}" for core in ("numpy.core", "numpy._core") for name in ("scalar", "_reconstruct")),
    )
]


def read_torch_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a .pth or .pt file, alone or among other entries; a UserError if there is none."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint saved with torch.save")
    try:
        with torch.serialization.safe_globals(_IGNORED_GLOBALS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file surfaces as nearly any type: EOFError, KeyError, RuntimeError, ...
        raise UserError(
            f"{path}: not a checkpoint that can be read safely; expected tensors saved with torch.save "
            f"({type(error).__name__}: {_gist(error)})"
        ) from error
    return _state_dict(content, str(path))


def check_values(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError naming `source` when a weight is complex, NaN or infinite."""
    spoilt = [key for key, value in state_dict.items() if _is_spoilt(value)]
    if spoilt:
        raise UserError(f"{source}: the weights are no finite real numbers\n{_listed('spoilt', spoilt)}")


def load_state(net: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Load all weights of `net` from `state_dict`; raise a UserError naming `source` when any does not fit."""
    found = _state_dict(state_dict, source)
    if all(key.startswith("module.") for key in found):  # saved from a DataParallel wrapper
        found = {key.removeprefix("module."): value for key, value in found.items()}
    wanted = net.state_dict()
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    if not (missing or unexpected or misshapen):
        try:
            net.load_state_dict(found)
        except RuntimeError as error:  # of the right shape, but sparse, quantised or without values
            why = " ".join(str(error).split())[:300]
            raise UserError(f"{source}: the weights cannot be copied into the network ({why})") from error
        return
    shapes = [f"{key} {list(found[key].shape)} instead of {list(wanted[key].shape)}" for key in misshapen]
    mismatches = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("wrongly shaped", shapes)]
    hint = _class_count_hint({key: (found[key].shape, wanted[key].shape) for key in misshapen})
    raise UserError("\n".join([f"{source}: the weights do not fit the network", *filter(None, [*mismatches, hint])]))


def imagenet_backbone_state(arch: str) -> dict[str, Tensor]:
    """Return weights for `build(arch, ...).backbone`, trained on ImageNet by torchvision.

    The only function of the package that downloads (into torch's hub folder, checked against the hash in its name).
    """
    backbone = network_module(arch).IMAGENET_BACKBONE
    from torchvision import models

    enum, member = IMAGENET[backbone]
    return backbone_state(arch, models.get_weight(f"{enum}.{member}").get_state_dict(progress=False, check_hash=True))


def backbone_state(arch: str, classifier_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of a torchvision ImageNet classifier's weights that is the backbone of `arch`, by its keys."""
    backbone = network_module(arch).IMAGENET_BACKBONE
    renamed = {_backbone_key(backbone, key): value for key, value in classifier_state.items()}
    return {key: value for key, value in renamed.items() if key is not None}


def _backbone_key(backbone: str, key: str) -> str | None:
    """Return the name in the backbone of a weight of torchvision's classifier; None if the backbone has none."""
    if backbone.startswith("resnet"):
        return None if key.startswith("fc.") else key
    if not key.startswith("features."):
        return None
    _, block, rest = key.split(".", 2)
    if backbone == "mobilenet_v3_large":
        return f"{block}.{rest}"
    if block == "18":  # the 1x1 convolution before ImageNet's pooling
        return None
    if backbone == "mobilenet_tv":
        return key
    return f"{'low' if int(block) < 4 else 'high'}_level_features.{block}.{rest}"


def _state_dict(content: object, source: str) -> dict[str, Tensor]:
    """Return the mapping of names to tensors in a file of a training script."""
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        found = "nothing" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"{source}: holds {found} instead of a state dict (names and tensors)")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{source}: not a state dict: {key!r} holds a {type(value).__name__} instead of a tensor")
    return dict(content)


def _is_spoilt(value: Tensor) -> bool:
    """Return whether a value is NaN, infinite or complex; torch itself refuses tensors without plain values."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.is_complex() or (value.is_floating_point() and not bool(torch.isfinite(value.float()).all()))


def _listed(what: str, entries: list[str]) -> str:
    """Return a line like '  2 missing: a, b', or nothing."""
    if not entries:
        return ""
    more = ", ..." if len(entries) > SHOWN else ""
    return f"  {len(entries)} {what}: {', '.join(entries[:SHOWN])}{more}"


def _class_count_hint(shapes: dict[str, tuple[torch.Size, torch.Size]]) -> str:
    """Return a hint when the shapes found and wanted differ only in the number of outputs of the last layer."""
    counts = {(found[:1], wanted[:1]) for found, wanted in shapes.values()}
    only_outputs = all(found[1:] == wanted[1:] for found, wanted in shapes.values())
    if len(counts) != 1 or not only_outputs or not all("classifier" in key for key in shapes):
        return ""
    (found,), (wanted,) = counts.pop()
    return f"  hint: these weights are for {found} classes, the network was built for {wanted}"


def _gist(error: Exception) -> str:
    """Return the first sentence of torch's long advice."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0] if lines else "no reason given"
