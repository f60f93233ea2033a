"""Write docs/params.md from the typed models.

python tools/params_doc.py            # exit code 1 when the page is out of date
python tools/params_doc.py --write
"""

from __future__ import annotations

import argparse
import re
import sys
import types
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from segdistill.params.archs import arch_facts, arch_names
from segdistill.params.model import Arch, Params, RunBase, section_of

PAGE = Path(__file__).resolve().parent.parent / "docs" / "params.md"
SECTIONS = [name for name in Params.model_fields if name not in {"seed", "seeds", "runs"}]


def allowed(annotation: object, metadata: list) -> str:
    """Return what a field takes, in words."""
    bounds = "".join(
        f", {word} {getattr(rule, name)}" for rule in metadata for name, word in _BOUNDS.items() if _has(rule, name)
    )
    origin = typing.get_origin(annotation)
    if _NAMES_A_NETWORK in metadata:
        return "a network below"
    if origin is typing.Annotated:
        inner, *rules = typing.get_args(annotation)
        return allowed(inner, [*rules, *metadata])
    if origin is typing.Literal:
        return " \\| ".join(f"`{_yaml(value)}`" for value in typing.get_args(annotation))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(allowed(part, metadata) for part in typing.get_args(annotation))
    if origin is tuple:
        parts = typing.get_args(annotation)
        return (
            f"list of {allowed(parts[0], [])}"
            if parts[-1] is Ellipsis
            else f"[{', '.join(allowed(p, []) for p in parts)}]"
        )
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation))) + bounds


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_NAMES_A_NETWORK = typing.get_args(Arch)[1]  # the rule that pydantic applies
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def _has(rule: object, name: str) -> bool:
    return getattr(rule, name, None) is not None


def rows(model: type[BaseModel], prefix: str) -> list[str]:
    """Return a table row for each field, nested sections flattened."""
    found = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        section = section_of(field.annotation)
        if section is not None and section is not field.annotation:
            found.append(f"| `{path}` | null or the keys below | {field.description} |")
        if section is not None:
            found += rows(section, f"{path}.")
        else:
            found.append(_row(path, field))
    return found


def _row(path: str, field: FieldInfo) -> str:
    takes = "mapping of keys" if "dict" in str(field.annotation) else allowed(field.annotation, field.metadata)
    if not field.is_required() and field.default not in (None, {}, ()):
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        takes += f"; `{default}` where it is left out"
    return f"| `{path}` | {takes} | {field.description or ''} |"


def page() -> str:
    """Return the page."""
    lines = [
        "# params.yaml, key by key",
        "",
        "Written from the typed models by `python tools/params_doc.py --write`.",
        "",
        "DVC reads YAML 1.2, most Python programs 1.1. Values that differ between them are refused: `010`, `1:30`,",
        "`1_000`, `yes`, `no`, `on`, `off` and dates. Write a plain number, `true` or `false`, or text in quotes.",
        "",
    ]
    head = ["| key | allowed | what it is |", "|---|---|---|"]
    seeds = {name: Params.model_fields[name] for name in ("seed", "seeds")}
    lines += [*head, *(_row(name, field) for name, field in seeds.items()), ""]
    for name in SECTIONS:
        lines += [f"## {name}", "", *head, *rows(Params.model_fields[name].annotation, f"{name}."), ""]
    lines += [
        *("## runs", ""),
        "Each entry is one student, named by up to 100 lower-case letters, digits and single dashes. A name that",
        'YAML reads as a number, a date or a truth value needs quotes: `"12"`, `"1e3"`, `"on"`. Without them it is',
        "refused, because DVC would drop its stages or run them under another name.",
        "",
    ]
    lines += [*head, *rows(RunBase, "runs.RUN."), ""]
    lines += [
        "A run may have any key of `distill` but `crop_px` and `scale_range`, which then replaces that of `distill`.",
        "",
    ]
    lines += [
        *("## Networks", ""),
        "A network is a file of `src/segdistill/networks`, and a file of your own there is one more (extend.md). One",
        "whose name ends in `_timm` also needs the key `backbone`: a model of timm that gives features at its strides.",
        "",
    ]
    lines += ["| name | what it is | output strides |", "|---|---|---|"]
    for name in arch_names():
        facts = arch_facts(name)
        lines.append(f"| `{name}` | {facts.description} | {', '.join(map(str, sorted(facts.output_strides)))} |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"docs/{PAGE.name} is out of date; run: python tools/params_doc.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
