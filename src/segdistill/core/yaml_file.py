"""YAML as DVC reads it, with faults told by file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from segdistill.core.errors import UserError, raise_all

MAX_DEPTH = 20  # levels of lists and mappings in one another
MAX_BITS = 1000  # of a whole number; a float holds 1023
MAX_SHOWN = 200  # characters of a value in a message


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-4 is a number, and a key that stands twice is a fault, not an overwrite.

    Aliases are refused: a few of them name more values than any memory holds, and `dvc exp run -S` writes through one
    into every place that shares its value.
    """

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            where = f"{alias.start_mark.name}: alias *{alias.anchor} (line {alias.start_mark.line + 1})"
            raise UserError(f"{where}; allowed is the value itself, written out")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)|[-+]?(\d+\.\d*|\.\d+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key in (loader.construct_object(key) for key, _ in node.value):
        if not isinstance(key, str | int | float):  # a date, a list, nothing
            raise UserError(f"{node.start_mark.name}: key {key} is no name (line {node.start_mark.line + 1} on)")
        if key in seen or str(key) in seen:
            raise UserError(f"{node.start_mark.name}: key {key!r} stands twice (line {node.start_mark.line + 1} on)")
        seen |= {key, str(key)}
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def read_mapping(path: Path, of: str, remedy: str) -> dict:
    """The mapping in the YAML file `path`.

    Args:
        of: what is allowed to be mapped, in words.
        remedy: what to do when there is no such file.

    Raises:
        UserError: no such file, no UTF-8 text, no YAML, no mapping, a key that stands twice, or values that
            no JSON holds.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            raw = yaml.load(stream, Loader=_Loader)  # noqa: S506 - a SafeLoader with two rules more
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except UserError:
        raise
    except Exception as error:  # a tag on the wrong value surfaces as nearly any type
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: found {type(raw).__name__}, allowed is a mapping of {of}")
    raise_all(_unspeakable(raw, ""), f"{path} has values that are not allowed")
    return raw


def _unspeakable(value: object, path: str, level: int = 0) -> Iterator[str]:
    """Faults of values that no JSON holds, through which the models get them."""
    if level > MAX_DEPTH:
        yield f"{path}: lists and mappings in one another; at most {MAX_DEPTH} levels"
    elif isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{shown(key)}".removeprefix(".")
            if not _is_unicode(str(key)):
                yield f"{below}: a name with half a character in it"
            yield from _unspeakable(inner, below, level + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _unspeakable(inner, f"{path}.{index}", level + 1)
    elif isinstance(value, str) and not _is_unicode(value):
        yield f"{path}: found {json.dumps(value)[:MAX_SHOWN]}; a text with half a character in it"
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        yield f"{path}: found a number of {value.bit_length()} bits; at most {MAX_BITS}"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(name: object) -> str:
    """A key as messages show it: one line, whatever it holds."""
    text = str(name)
    return text if text.isprintable() and text else json.dumps(text)
