"""YAML that DVC reads the same way, with errors named by file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import yaml

from segdistill.core.errors import UserError, raise_all

MAX_DEPTH = 20  # of nested lists and mappings
MAX_BITS = 1000  # of a whole number; a float holds 1023
MAX_SHOWN = 200  # characters of a value in a message

# PyYAML reads YAML 1.1, DVC reads 1.2. Each of these is another value there, or a date: neither text nor number.
_AMBIGUOUS = re.compile(
    r"(?i:yes|no|on|off)"  # true or false, or text
    r"|[-+]?0[0-9]*[1-9][0-9]*|[-+]?0o[0-7_]+"  # 010 is 8 or 10, 0o10 is text or 8
    r"|(?=.*[_:])[-+]?[0-9._:]+([eE][-+]?[0-9_]*)?"  # 1:30 is 90 or text, 1_000 is 1000 or text
    r"|[-+]?\.[0-9]+[eE][-+]?[0-9]+"  # .5e3 is 500 or text
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt\s].*)?"
)
_QUOTE = "in quotes if it is text, else as a plain number or true or false"


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as DVC has it, a key occurs once, and nothing is ambiguous.

    Aliases are refused: a few of them name more values than any memory holds, and `dvc exp run -S` writes through one
    into every place that shares its value.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self.errors: list[str] = []

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark or self.get_mark()
        line = mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            where = f"{mark.name}: alias *{event.anchor} (line {line})"
            raise UserError(f"{where}; allowed is the value itself, written out")
        is_plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
        if is_plain and _AMBIGUOUS.fullmatch(event.value):
            self.errors.append(f"line {line}: {event.value} is ambiguous in YAML; write it {_QUOTE}")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # All of the value, because PyYAML only matches its start: 1e3-cosine and 2.5d are text.
    re.compile(
        r"([-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+|[-+]?([0-9]+\.[0-9]*|\.[0-9]+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _mapping_of_names(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
        if isinstance(key, str) and key in seen:
            loader.errors.append(f"line {line}: key {shown(key)} occurs twice")
        elif not isinstance(key, str) and not is_ambiguous(str(key_node.value)):
            found = shown(key_node.value)[:MAX_SHOWN]
            loader.errors.append(f"line {line}: key {found} is not text to YAML; write it in quotes")
        if isinstance(key, str):
            seen.add(key)
    return {} if loader.errors else yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_of_names)


def is_ambiguous(text: str) -> bool:
    """Return whether `text` is another value in YAML 1.1 than in YAML 1.2, when it is not in quotes."""
    return _AMBIGUOUS.fullmatch(text) is not None


def read_mapping(path: Path, of: str, remedy: str) -> dict:
    """Return the mapping in the YAML file `path`.

    Args:
        of: what the mapping has as its keys, in words.
        remedy: what to do when there is no such file.

    Raises:
        UserError: no such file, no UTF-8 text, no YAML, no mapping, keys that occur twice or are no names, values that
            YAML 1.1 and 1.2 read differently, or values that no JSON holds.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            loader = _Loader(stream)
            raw, errors = loader.get_single_data(), loader.errors
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except UserError:
        raise
    except Exception as error:  # a tag on the wrong value makes PyYAML raise nearly any type
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split()) or type(error).__name__}") from None
    raise_all(errors, f"{path} has lines that are not allowed")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: found {type(raw).__name__}, allowed is a mapping of {of}")
    raise_all(_not_json(raw, ""), f"{path} has values that are not allowed")
    return raw


def _not_json(value: object, path: str, level: int = 0) -> Iterator[str]:
    """Yield an error for each value that JSON cannot hold, in which form the models read them."""
    if level > MAX_DEPTH:
        yield f"{path}: nested lists and mappings; at most {MAX_DEPTH} levels"
    elif isinstance(value, dict):
        for key, inner in value.items():
            below = f"{path}.{shown(key)}".removeprefix(".")
            if not _is_unicode(key):
                yield f"{below}: a name with half a character in it"
            yield from _not_json(inner, below, level + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_json(inner, f"{path}.{index}", level + 1)
    elif isinstance(value, str) and not _is_unicode(value):
        yield f"{path}: found {json.dumps(value)[:MAX_SHOWN]}; a text with half a character in it"
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        yield f"{path}: found a number of {value.bit_length()} bits; at most {MAX_BITS}"


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(name: object) -> str:
    """Return a key as messages show it: on one line."""
    text = str(name)
    return text if text.isprintable() and text else json.dumps(text)
