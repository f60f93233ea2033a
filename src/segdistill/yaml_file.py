"""YAML as DVC reads it, with faults told by file and line."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from segdistill.errors import InputError


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-4 is a number, and a key that stands twice is a fault, not an overwrite.

    Aliases are refused: `dvc exp run -S` writes through one into every place that shares its value.
    """

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            where = f"{alias.start_mark.name}: alias *{alias.anchor} (line {alias.start_mark.line + 1})"
            raise InputError(f"{where}; allowed is the value itself, written out")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)|[-+]?(\d+\.\d*|\.\d+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str | int | float):  # a date, a list, nothing
            raise InputError(f"{node.start_mark.name}: key {key} is no name (line {node.start_mark.line + 1} on)")
        if keys.count(key) > 1:
            raise InputError(f"{node.start_mark.name}: key {key!r} stands twice (line {node.start_mark.line + 1} on)")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def read_mapping(path: Path, of: str, remedy: str) -> dict:
    """The mapping in the YAML file `path`.

    Args:
        of: what is allowed to be mapped, in words.
        remedy: what to do when there is no such file.

    Raises:
        InputError: no such file, no UTF-8 text, no YAML, no mapping, or a key that stands twice.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            raw = yaml.load(stream, Loader=_Loader)  # noqa: S506 - a SafeLoader with two rules more
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}, allowed is a mapping of {of}")
    return raw
