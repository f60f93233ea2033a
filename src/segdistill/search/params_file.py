"""Add and remove runs in params.yaml, and leave every other byte of the file as it is, comments included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import filelock
import yaml

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file
from segdistill.core.yaml_file import read_mapping
from segdistill.paths import PARAMS, SCRATCH

LOCK = SCRATCH / "params.lock"


def add_run(name: str, entry: dict, path: Path = PARAMS) -> None:
    """Add the run `name` as one line below the last run; do nothing where it is there with these values.

    Raises:
        UserError: the name is taken by another run, or runs are not written one below the other.
    """

    def add(text: str, raw: dict) -> str:
        if name in raw["runs"]:
            if raw["runs"][name] == entry:
                return text
            raise UserError(f"{path}: runs.{name} is there with other values; remove it, or take another name")
        raw["runs"][name] = entry
        runs = _runs_node(text)
        first, last = runs.value[0][0], runs.value[-1][1]
        newline = "\r\n" if "\r\n" in text else "\n"
        values = yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=float("inf")).strip()
        end = _line_end(text, _end(last))
        gap = "" if text[:end].endswith("\n") else newline
        return f"{text[:end]}{gap}{' ' * first.start_mark.column}{name}: {values}{newline}{text[end:]}"

    _edit(path, add)


def remove_run(name: str, path: Path = PARAMS) -> None:
    """Remove the run `name` and what its lines hold; do nothing where it is not there."""

    def remove(text: str, raw: dict) -> str:
        if raw["runs"].pop(name, None) is None:
            return text
        key, value = next(pair for pair in _runs_node(text).value if pair[0].value == name)
        start = text.rfind("\n", 0, key.start_mark.index) + 1
        return text[:start] + text[_line_end(text, _end(value)) :]

    _edit(path, remove)


def check_lines(path: Path = PARAMS) -> None:
    """Raise a UserError where runs are not written one below the other, before a search has made anything."""
    _runs_node(path.read_text(encoding="utf-8"))


def _edit(path: Path, change: Callable[[str, dict], str]) -> None:
    """Replace the text of `path` by what `change` makes of it and of its content, which it changes as well.

    Processes edit one after the other. The new text is read back before it replaces the old one: where it does not
    hold the changed content, `path` stays as it is.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(LOCK):
        raw = read_mapping(path, "sections", "take one with: cp profiles/tiny.yaml params.yaml")
        with path.open(encoding="utf-8", newline="") as stream:
            text = stream.read()
        changed = change(text, raw)
        if changed == text:
            return
        with atomic_file(path.resolve()) as temporary:  # a link stays one
            with temporary.open("w", encoding="utf-8", newline="") as stream:
                stream.write(changed)
            try:
                is_right = read_mapping(temporary, "sections", "") == raw
            except UserError:
                is_right = False
            if not is_right:
                raise _not_lines(path)


def _runs_node(text: str) -> yaml.MappingNode:
    """Return the node of `runs`, whose marks are places in `text`."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "read_mapping checks it"
    runs = next(value for key, value in root.value if key.value == "runs")
    if root.flow_style or runs.flow_style or not runs.value:
        raise _not_lines(PARAMS)
    return runs


def _not_lines(path: Path) -> UserError:
    return UserError(
        f"{path}: cannot add and remove lines of runs; write one run below the other, as profiles/tiny.yaml"
    )


def _end(node: yaml.Node) -> int:
    """Return where the text of `node` ends: the mark of a block is behind the comments that follow it."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return node.end_mark.index


def _line_end(text: str, index: int) -> int:
    """Return the index of the line after the one of `index`."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1
