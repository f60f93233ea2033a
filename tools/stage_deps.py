"""The code dependencies of each stage in dvc.yaml: exactly what its file imports, directly or not.

A folder of which a stage imports every file is named in their place: DVC is much faster at that.

    python tools/stage_deps.py            # tell which stages are out of date; exit code 1 if any is
    python tools/stage_deps.py --write    # write them into dvc.yaml

With these, editing the report never retrains, and editing the loop always does.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
CODE_LINE = re.compile(r"^ +- (src|stages)/\S+$")
DATA_FILE = re.compile(r'^\w+ = Path\(__file__\)\.with_name\("([\w.]+)"\)', re.MULTILINE)
STAGE_COMMAND = re.compile(r"^ +cmd: python (stages/\w+\.py)")


def module_file(name: str) -> Path | None:
    """The file of a module of ours, or None for anybody else's."""
    base = SOURCE / Path(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported_modules(path: Path) -> set[str]:
    """Names of our modules that `path` imports anywhere, in functions too, with the packages they lie in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    ours = {name for name in names if name.split(".")[0] == "segdistill" and module_file(name)}
    return {".".join(name.split(".")[:end]) for name in ours for end in range(1, len(name.split(".")) + 1)}


def import_closure(path: Path) -> list[str]:
    """`path` and every file of ours that it imports, directly or not, relative to the repository, sorted.

    A module that reads a data file of the package names it in a line `NAME = Path(__file__).with_name("file")`.
    """
    found, waiting = {path}, [path]
    while waiting:
        for name in imported_modules(waiting.pop()):
            file = module_file(name)
            if file not in found:
                found.add(file)
                waiting.append(file)
    for file in list(found):
        for data in DATA_FILE.findall(file.read_text(encoding="utf-8")):
            found.add(file.parent / data)
    return sorted(str(file.relative_to(ROOT)) for file in found)


def with_whole_folders(files: list[str]) -> list[str]:
    """`files` with each folder of which they are all named once, instead of them."""
    names = set(files)
    folders = {folder for file in files for folder in Path(file).parents if (ROOT / folder).is_relative_to(SOURCE)}
    for folder in folders:
        inside = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if _counts(path)}
        if len(inside) > 1 and inside <= set(files):
            names = names - inside | {str(folder)}
    return sorted(name for name in names if names.isdisjoint(map(str, Path(name).parents)))


def _counts(path: Path) -> bool:
    """Whether DVC looks at the file; see .dvcignore."""
    return path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")


def with_code_deps(text: str) -> str:
    """dvc.yaml with the code lines of every stage's deps replaced by its closure."""
    lines, closure, written = [], [], False
    for line in text.splitlines():
        command = STAGE_COMMAND.match(line)
        if command:
            closure, written = with_whole_folders(import_closure(ROOT / command.group(1))), False
        if not CODE_LINE.match(line):
            lines.append(line)
        elif not written:
            indent = line[: line.index("-")]
            lines += [f"{indent}- {file}" for file in closure]
            written = True
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write dvc.yaml")
    write = parser.parse_args().write
    path = ROOT / "dvc.yaml"
    found, wanted = path.read_text(encoding="utf-8"), with_code_deps(path.read_text(encoding="utf-8"))
    if write:
        path.write_text(wanted, encoding="utf-8")
    elif found != wanted:
        print("dvc.yaml: code deps differ from the imports; run: python tools/stage_deps.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
