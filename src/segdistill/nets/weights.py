"""Weights on disk: this project's safetensors, checkpoints of other training scripts, torchvision's ImageNet files.

A network that is used as it is must find each of its weights in the file (`load_state`). A training may start from a
file that fits in part (`load_initial`). No file can run code: `torch.load` reads tensors and plain containers only.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file
from segdistill.core.log import logger
from segdistill.formats.header import KEY, Header, read_header
from segdistill.nets.registry import PROBE_PX, build_uninitialized, in_eval_mode, network_module
from segdistill.params.archs import network_file, split_network

# Where training scripts put the state dict in what they save, in order of preference: the weights that were trained
# before their moving average, because the metrics that a script prints are usually those of the former.
WRAPPERS = ("model_state", "model_state_dict", "state_dict", "model", "net", "weights")
AVERAGES = ("model_ema", "state_dict_ema", "ema")
# What wrappers put before every name: DataParallel, torch.compile, Lightning modules and the like.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
AUXILIARY_HEAD = "aux_classifier."  # of torchvision's segmentation networks; only its own training uses it
# Class weights of losses, which scripts that descend from HRNet's, and Lightning modules, save with the network.
LOSSES = ("loss.", "loss_fn.", "criterion.", "sem_loss.", "bd_loss.")
LAST_LAYERS = ("classifier.", "final_layer.", "seghead_")  # where names of layers that give logits start
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
        temporary.write_bytes(content)  # safetensors' own writer does not name the file when the disk is full


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


def check_rebuilds(net: nn.Module, network: str, classes: int, output_stride: int) -> None:
    """Raise a UserError where a second network with the weights of `net` is another one than `net`.

    Each stage builds the network anew from its weights file. What the file of a network draws or keeps outside of its
    state_dict would be other values then, and the metrics those of a network that was never trained.
    """
    file = network_file(split_network(network)[0])
    image = torch.linspace(-2, 2, 3 * math.prod(PROBE_PX)).view(1, 3, *PROBE_PX)
    needed = "needed is one whose parameters and buffers hold all that it draws (register_buffer, persistent)"
    try:
        second = build_uninitialized(network, classes, output_stride)
        load_state(second, net.state_dict(), source=file)
        with in_eval_mode(net), in_eval_mode(second):
            first_logits, second_logits = net(image), second(image)
    except Exception as error:  # the file may be the user's own, and hold anything
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file}: cannot be built from its weights ({type(error).__name__}: {cause}); {needed}"
        ) from error
    rounding = 1e-4 * float(first_logits.abs().nan_to_num().max())
    if not torch.allclose(first_logits, second_logits, rtol=0, atol=rounding, equal_nan=True):
        raise UserError(f"{file}: two networks of the same weights give different logits; {needed}")


class _Ignored:
    """Replaces values that a checkpoint also has (best scores, arguments of its script); none of their code runs."""

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
        *("argparse.Namespace", "types.SimpleNamespace"),
        *(f"{module}.{name}Path" for module in ("pathlib", "pathlib._local") for name in ("Posix", "Windows")),
    )
]


def read_torch_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a file that torch.save wrote, bare or with other things.

    Raises:
        UserError: there is none to read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a checkpoint saved with torch.save")
    try:
        with torch.serialization.safe_globals(_IGNORED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a TorchScript archive, which the error names too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file surfaces as nearly any type: EOFError, KeyError, RuntimeError, ...
        lines = str(error).strip().splitlines()
        gist = lines[0].split(". ")[0] if lines else "no reason given"  # long advice follows
        found = re.search(r"GLOBAL (\S+)", str(error))
        cause = f"it holds a Python object of {found[1]}" if found else f"{type(error).__name__}: {gist}"
        raise UserError(
            f"{path}: not a checkpoint that can be read safely; expected tensors saved with torch.save ({cause})"
        ) from error
    return _state_dict(content, str(path))


def check_values(state_dict: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError naming `source` when a weight is complex, NaN or infinite."""
    spoilt = [key for key, value in state_dict.items() if _is_spoilt(value)]
    if spoilt:
        raise UserError(f"{source}: the weights are no finite real numbers\n{_listed('spoilt', spoilt)}")


def load_state(net: nn.Module, state_dict: Mapping[str, Any], source: str) -> None:
    """Load all of the weights of `net` from `state_dict`.

    Raises:
        UserError: a weight is missing, is left over or has another shape; the message names `source`.
    """
    wanted = net.state_dict()
    found = _renamed(_state_dict(state_dict, source), wanted, source)
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    misshapen = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    if missing or unexpected or misshapen:
        shapes = [f"{key} {list(found[key].shape)} instead of {list(wanted[key].shape)}" for key in misshapen]
        errors = [_listed("missing", missing), _listed("unexpected", unexpected), _listed("wrongly shaped", shapes)]
        hint = _class_count_hint({key: (found[key].shape, wanted[key].shape) for key in misshapen})
        raise UserError("\n".join([f"{source}: the weights do not fit the network", *filter(None, [*errors, hint])]))
    _copy(net, found, source)


def load_initial(net: nn.Module, arch: str, state_dict: Mapping[str, Any], source: str) -> None:
    """Load those weights of `net`, a network named `arch`, that `state_dict` has, and log which stay as they are.

    So a training can start from a file for other classes, from another head, or from torchvision's ImageNet file.

    Raises:
        UserError: no weight fits; the message names `source`.
    """
    wanted = net.state_dict()
    found = _renamed(_state_dict(state_dict, source), wanted, source)
    if not any(key in wanted for key in found):  # a classifier of ImageNet, perhaps
        found = {f"backbone.{key}": value for key, value in backbone_state(arch, found).items()}
    fitting = {key: value for key, value in found.items() if key in wanted and value.shape == wanted[key].shape}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise UserError(
            f"{source}: no weight fits the network {arch}, by name and shape; the network has {_few(wanted)}"
        )
    _copy(net, wanted | fitting, source)
    kept = [key for key in wanted if key not in fitting]
    unused = [key for key in found if key not in fitting and key not in wanted]
    if kept:
        shapes = {key: (found[key].shape, wanted[key].shape) for key in kept if key in found}
        hint = _class_count_hint(shapes)
        logger.warning(
            "%s: %d of %d weights fit the network; these start at random: %s%s",
            *(source, len(fitting), len(wanted), _few(kept), f"\n{hint}" if hint else ""),
        )
    if unused:
        logger.warning("%s: not used, as the network has none of these names: %s", source, _few(unused))


def _renamed(found: dict[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return `found` under the names of `wanted`, without what other scripts save with the weights."""
    if "n_averaged" not in wanted:
        found.pop("n_averaged", None)  # the counter of torch's AveragedModel
    while True:
        found = {key: value for key, value in found.items() if key in wanted or not key.startswith(LOSSES)}
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in found)), None)
        if prefix is None or not found or any(key.startswith(prefix) for key in wanted):
            break
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    auxiliary = [key for key in found if key.startswith(AUXILIARY_HEAD) and key not in wanted]
    if auxiliary:
        logger.info(
            "%s: leaves out the auxiliary head (%d weights), which the network does not have", source, len(auxiliary)
        )
        found = {key: value for key, value in found.items() if key not in auxiliary}
    # torch before 0.4.1 and other frameworks do not count the batches of batch norm, and evaluation does not read it.
    for key, value in wanted.items():
        if key.endswith(".num_batches_tracked") and f"{key.rpartition('.')[0]}.running_mean" in found:
            found.setdefault(key, torch.zeros_like(value))
    return found


def _copy(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    try:
        net.load_state_dict(state)
    except RuntimeError as error:  # of the right shape, but sparse, quantised or without values
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: the weights cannot be copied into the network ({why})") from error


def imagenet_backbone_state(arch: str) -> dict[str, Tensor]:
    """Return weights for `build(arch, ...).backbone`, trained on ImageNet.

    torchvision's files are downloaded into torch's hub folder and checked against the hash in their names; for those of
    timm's models see `timm_backbone.imagenet_state`. Nothing else in the package downloads.

    Raises:
        UserError: the network has no ImageNet weights, or they cannot be had.
    """
    if (timm_name := split_network(arch)[1]) is not None:
        from segdistill.nets.timm_backbone import imagenet_state

        return backbone_state(arch, imagenet_state(timm_name))
    backbone = getattr(network_module(arch), "IMAGENET_BACKBONE", None)
    if backbone is None:
        raise UserError(f"found imagenet; {arch} has no ImageNet weights, so allowed are random and a weights file")
    from torchvision import models

    enum, member = IMAGENET[backbone]
    return backbone_state(arch, models.get_weight(f"{enum}.{member}").get_state_dict(progress=False, check_hash=True))


def backbone_state(arch: str, classifier_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the part of an ImageNet classifier's weights, torchvision's or timm's, that is the backbone of `arch`.

    Its keys are those of the backbone.
    """
    if split_network(arch)[1] is not None:
        return {f"features.{key}": value for key, value in classifier_state.items()}
    backbone = getattr(network_module(arch), "IMAGENET_BACKBONE", None)
    if backbone is None:
        return {}
    renamed = {_backbone_key(backbone, key): value for key, value in classifier_state.items()}
    return {key: value for key, value in renamed.items() if key is not None}


def _backbone_key(backbone: str, key: str) -> str | None:
    """Return the backbone's name of a weight of torchvision's classifier; None where the backbone does not have it."""
    if backbone.startswith("resnet"):
        return None if key.startswith("fc.") else key
    match = re.fullmatch(r"features\.([0-9]+)\.(.+)", key)
    if match is None:
        return None
    block, rest = match.groups()
    if backbone == "mobilenet_v3_large":
        return f"{block}.{rest}"
    if block == "18":  # the 1x1 convolution before ImageNet's pooling
        return None
    if backbone == "mobilenet_tv":
        return key
    return f"{'low' if int(block) < 4 else 'high'}_level_features.{block}.{rest}"


def _state_dict(content: object, source: str) -> dict[str, Tensor]:
    """Return the names and tensors in what a training script saved."""
    while isinstance(content, Mapping):
        wrappers = [name for name in (*WRAPPERS, *AVERAGES) if isinstance(content.get(name), Mapping)]
        if not wrappers:
            break
        unused = [name for name in wrappers[1:] if name in AVERAGES]
        if unused:
            logger.info("%s: takes the weights in %s, not their average in %s", source, wrappers[0], ", ".join(unused))
        content = content[wrappers[0]]
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
    """Return '  2 missing: a, b', or nothing."""
    if not entries:
        return ""
    return f"  {len(entries)} {what}: {_few(entries)}"


def _few(entries: Iterable[str]) -> str:
    """Return the first few entries in a line."""
    entries = list(entries)
    return ", ".join(entries[:SHOWN]) + (", ..." if len(entries) > SHOWN else "")


def _class_count_hint(shapes: dict[str, tuple[torch.Size, torch.Size]]) -> str:
    """Return a hint where the shapes found and wanted differ only in the number of outputs of the last layer."""
    counts = {(found[:1], wanted[:1]) for found, wanted in shapes.values()}
    only_outputs = all(found[1:] == wanted[1:] for found, wanted in shapes.values())
    if len(counts) != 1 or not only_outputs or not all(key.startswith(LAST_LAYERS) for key in shapes):
        return ""
    (found,), (wanted,) = counts.pop()
    return f"  hint: these weights are for {found} classes, the network was built for {wanted}"
