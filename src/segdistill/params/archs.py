"""The networks by name, as params.yaml may name them: the files of `segdistill/networks`.

Each file owns the facts of its network. They are read from its source, so params are checked without loading torch.

A network of the files `*_timm.py` is built around any backbone of timm. Code, headers and metrics name it by one text,
`deeplabv3plus_timm:tf_efficientnet_lite0`; params.yaml has the keys `arch` (of a student: `student`) and `backbone`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from segdistill.core.errors import UserError

NETWORKS = Path(__file__).resolve().parent.parent / "networks"
# Strides and unpadded convolutions leave nothing of images with a smaller side.
MIN_PX = 32
OUTPUT_STRIDES = (8, 16)
FEATURE_STRIDE = 16  # input pixels per stored feature of the teacher, each way
BACKBONE_NAME = re.compile(r"[\w.]+")  # one of timm's own models; its prefixes, such as hf-hub:, would download


class Arch(NamedTuple):
    """What a network is, the output strides it can be built at, and whether it can start from ImageNet weights."""

    description: str
    output_strides: tuple[int, ...]
    has_imagenet_weights: bool


def arch_names() -> list[str]:
    """Return the names of all networks, in alphabetical order."""
    return sorted(path.stem for path in NETWORKS.glob("*.py") if not path.stem.startswith("_"))


def takes_backbone(arch: str) -> bool:
    """Return whether a backbone of timm has to be named with the network."""
    return arch.endswith("_timm")


def network_name(arch: str, backbone: str | None) -> str:
    """Return the one text that names a network and its backbone."""
    return arch if backbone is None else f"{arch}:{backbone}"


def split_network(network: str) -> tuple[str, str | None]:
    """Return the name of the file of a network and its backbone; None where it has its own."""
    arch, colon, backbone = network.partition(":")
    return arch, backbone if colon else None


def nearest(name: str, names: list[str]) -> str:
    """Return the names that look like `name`, as the end of a message; nothing where none does."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    return f" (nearest: {', '.join(close)})" if close else ""


def arch_facts(arch: str) -> Arch:
    """Return the facts in the file of the network `arch`.

    Raises:
        UserError: there is no such file, or it does not describe a network.
    """
    if arch not in (names := arch_names()):
        raise UserError(f"no network is named {arch!r:.40}; allowed: {', '.join(names)}{nearest(arch, names)}")
    path = network_file(arch)
    try:
        tree = ast.parse(Path(path).read_bytes(), path)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"{path}: is not Python ({error.args[0]}{line})") from None
    constants: dict[str, Any] = {}
    parameters = None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "build":
            parameters = [argument.arg for argument in node.args.args]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            with contextlib.suppress(ValueError, TypeError, SyntaxError):  # facts are literal values only
                constants[ast.unparse(target)] = ast.literal_eval(node.value)
    wanted = ["classes", "output_stride", *(["backbone"] if takes_backbone(arch) else [])]
    if parameters != wanted:
        found = "no such function" if parameters is None else f"build({', '.join(parameters)})"
        raise UserError(f"{path}: a network has a function build({', '.join(wanted)}); found {found}")
    native_stride = constants.get("NATIVE_STRIDE", "nothing")
    if native_stride is not None and (type(native_stride) is not int or native_stride < 4 or native_stride % 4):
        raise UserError(
            f"{path}: NATIVE_STRIDE: found {native_stride!r:.40}; allowed is a written multiple of 4, the input pixels "
            "per logit, or None where that is the output stride"
        )
    strides = constants.get("OUTPUT_STRIDES", OUTPUT_STRIDES)
    if type(strides) is not tuple or not strides or any(stride not in OUTPUT_STRIDES for stride in strides):
        raise UserError(f"{path}: OUTPUT_STRIDES: found {strides!r:.40}; allowed is a tuple of {OUTPUT_STRIDES}")
    described = (ast.get_docstring(tree) or arch).splitlines()[0]
    has_imagenet_weights = takes_backbone(arch) or constants.get("IMAGENET_BACKBONE") is not None
    return Arch(described.removesuffix("."), strides, has_imagenet_weights)


def network_file(arch: str) -> str:
    """Return the path of the file of a network, as messages name it."""
    path = NETWORKS / f"{arch}.py"
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def check_arch(network: str, output_stride: int) -> None:
    """Raise a UserError when there is no network of that name, or when it cannot be built at that output stride."""
    if type(network) is not str:
        raise UserError(f"no network is named by a {type(network).__name__}; allowed is text")
    arch, backbone = split_network(network)
    facts = arch_facts(arch)
    if takes_backbone(arch) and backbone is None:
        raise UserError(f"{arch} needs a backbone, as in {arch}:tf_efficientnet_lite0")
    if backbone is not None and not (takes_backbone(arch) and BACKBONE_NAME.fullmatch(backbone)):
        raise UserError(f"{arch} cannot have the backbone {backbone!r:.40}")
    if type(output_stride) is not int or output_stride not in facts.output_strides:
        allowed = " or ".join(map(str, sorted(facts.output_strides)))
        raise UserError(f"{arch} cannot have output stride {output_stride!r:.40}; allowed: {allowed}")
