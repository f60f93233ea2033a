"""Weights that never travel alone: safetensors whose header says what they are. Nothing here is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from segdistill.base.class_table import MOST_CLASSES, ClassTable, class_names_of
from segdistill.base.errors import InputError
from segdistill.base.files import atomic_file
from segdistill.frames.transforms import MEAN, STD
from segdistill.nets.adapters import load_state
from segdistill.nets.registry import build_to_load, native_stride

_HEADER = "segdistill"


def net_facts(arch: str, classes: int | ClassTable, output_stride: int) -> dict:
    """The facts that rebuild a net and feed it as it was trained; of a table, also what its outputs stand for."""
    table = {}
    if isinstance(classes, ClassTable):
        classes, table = len(classes), classes.facts()
    return table | {
        "arch": arch,
        "classes": classes,
        "output_stride": output_stride,
        "normalisation": {"mean": list(MEAN), "std": list(STD), "range": "0..1", "order": "RGB"},
    }


def save_net(path: str | Path, net: nn.Module, facts: dict) -> None:
    """Write the net's weights with `facts` (net_facts and more, JSON-like) in the header, atomically."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in net.state_dict().items()}
    content = save(state, metadata={_HEADER: json.dumps(facts, sort_keys=True)})
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)  # by us, because safetensors words a full disk in its own way


def _header(path: str | Path) -> str | None:
    """What the header of a safetensors file says for us; None where it is none of ours."""
    try:
        with safe_open(path, framework="pt") as opened:
            return (opened.metadata() or {}).get(_HEADER)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no safetensors file ({error})") from None


def read_facts(path: str | Path) -> dict:
    """The header of a file of ours.

    Raises:
        InputError: no such file, no safetensors, none of ours, or facts that describe no net.
    """
    header = _header(path)
    if header is None:
        raise InputError(f"{path}: its header does not say which network it holds; name the network instead")
    return parsed_facts(header, path)


def parsed_facts(text: str, source: str | Path) -> dict:
    """The facts that `text`, the header of the file `source`, says in JSON: those of `net_facts` and more.

    Raises:
        InputError: a net cannot be rebuilt from them, or they name classes as nothing can be named.
    """
    try:
        facts = json.loads(text)
        missing = [key for key in ("arch", "classes", "output_stride") if key not in facts]
        if missing:
            raise InputError(f"it does not say {', '.join(missing)}")
        arch, classes, output_stride = facts["arch"], facts["classes"], facts["output_stride"]
        if type(classes) is not int or not 1 <= classes <= MOST_CLASSES:
            raise InputError(f"{classes!r:.40} classes; allowed: 1 to {MOST_CLASSES}")
        native_stride(arch, output_stride)
        if "class_names" in facts and len(names := class_names_of(facts)) != classes:
            raise InputError(f"{len(names)} class_names of {classes} classes")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{source}: its header does not describe a network: {error}") from None
    return facts


def own_facts(path: str | Path) -> dict:
    """The header of a weights file, empty where it is none of ours: a foreign file says nothing about itself.

    Raises:
        InputError: a header of ours with facts that describe no net.
    """
    try:
        header = _header(path)
    except InputError:  # a file of torch
        return {}
    return {} if header is None else parsed_facts(header, path)


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, in the order of the file."""
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no safetensors file ({error})") from None


def load_net(path: str | Path, expected: dict | None = None) -> tuple[nn.Module, dict]:
    """Rebuild the net that `path` holds, in eval mode, and its facts.

    Raises:
        InputError: its weights do not fit, or its facts are not the `expected` ones, as `net_facts` gives them.
    """
    facts = read_facts(path)
    for key, needed in (expected or {}).items():
        if facts.get(key) != needed:
            raise InputError(f"{path}: {key} is {facts.get(key)!r} there, {needed!r} is needed")
    net = build_to_load(facts["arch"], facts["classes"], facts["output_stride"])
    load_state(net, read_state(path), source=str(path))
    return net.eval(), facts
