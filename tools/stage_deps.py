"""The code dependencies of each stage in dvc.yaml: the packages that its file imports, directly or not.

    python tools/stage_deps.py            # report which stages are out of date; exit code 1 if any is
    python tools/stage_deps.py --write    # write them into dvc.yaml

A package is what reruns together, so a stage names packages, as few paths as that takes:

- Of a SHARED package, a stage that imports two of its files names the folder. Of any other package it names the folder
  when it imports all of its files, and else the files.
- A network is a file of its own: a stage depends on the one that its params name (NETWORK_OF).
- Code that cannot change a byte of an output is left out, by the lists EXEMPT and EXEMPT_IN with their reasons.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
PACKAGE = "src/segdistill"

SHARED = ("formats", "data", "nets", "scoring", "training", "results", "report", "tracking")

# Left out everywhere, and why no output depends on it.
EXEMPT = {
    "core": "plumbing: words of errors, atomic writing, progress, logging, processes, and names of revisions",
    "params": "DVC tracks the values of params.yaml; the default of a key that files may leave out never changes",
    "paths.py": "dvc.yaml names the same paths; a stage that writes elsewhere fails",
    "networks": "NETWORK_OF names the networks that a stage runs",
}
# Left out of one stage, and why.
EXEMPT_IN = {
    "teacher-logits": {"parallel": "the bytes are those of one process, on any number of ranks"},
    "export-onnx": {"parallel": "it runs in one process, where these functions do nothing"},
    "benchmark": {
        "parallel": "it runs in one process, where these functions do nothing",
        "export": "it times outputs of export-onnx, which reruns first; the teacher's files come from the same code",
    },
    "report": {"training": "it only removes the checkpoints of runs that params.yaml no longer has"},
}
# The network that a stage runs, as params name it. A repetition depends on the results of its run instead (dvc.yaml).
NETWORK_OF = {
    "teacher-check": "${teacher.arch}",
    "teacher-logits": "${teacher.arch}",
    "distill": "${item.student}",
    "steplr-finetune": "${item.student}",
    "export-onnx": "${item.student}",
}

CODE_LINE = re.compile(r"^ +- (src|stages)/\S+$")
DATA_FILE = re.compile(r'^\w+ = Path\(__file__\)\.with_name\("([\w.]+)"\)', re.MULTILINE)
STAGE_NAME = re.compile(r"^  ([a-z-]+):$")
STAGE_COMMAND = re.compile(r"^ +cmd: (?:exec )?python (stages/\w+\.py)")


def module_file(name: str) -> Path | None:
    """Return the file of a module of this project, or None for any other."""
    base = SOURCE / Path(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imported_modules(path: Path) -> set[str]:
    """Return the modules of this project that `path` imports anywhere, in functions too, with their packages."""
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


def import_closure(*paths: Path) -> list[str]:
    """Return `paths` and every file that they import, directly or not, relative to the repository, sorted.

    A module that reads a data file of the package names it in a line `NAME = Path(__file__).with_name("file")`.
    """
    found, waiting = set(paths), list(paths)
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


def code_deps(stage: str, script: str) -> list[str]:
    """Return the paths of code that `stage`, which runs `script`, depends on."""
    networks = sorted((SOURCE / "segdistill" / "networks").glob("*.py")) if stage in NETWORK_OF else []
    exempt = {f"{PACKAGE}/{name}" for name in (*EXEMPT, *EXEMPT_IN.get(stage.removesuffix("-repeat"), ()))}
    names = {
        file
        for file in import_closure(ROOT / script, *networks)
        if exempt.isdisjoint([file, *map(str, Path(file).parents)]) and not _is_bare_init(ROOT / file)
    }
    files = frozenset(names)
    for folder in {str(folder) for file in files for folder in Path(file).parents}:
        if not folder.startswith(f"{PACKAGE}/"):
            continue
        inside = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if _counts(path)}
        is_shared = Path(folder).name in SHARED and len(inside & files) > 1
        if is_shared or (len(inside) > 1 and inside <= files):
            names = names - inside | {folder}
    if stage in NETWORK_OF:
        names.add(f"{PACKAGE}/networks/{NETWORK_OF[stage]}.py")
    return sorted(name for name in names if names.isdisjoint(map(str, Path(name).parents)))


def _counts(path: Path) -> bool:
    """Return whether a file of a package can change an output, and DVC looks at it (see .dvcignore)."""
    return path.is_file() and "__pycache__" not in path.parts and path.name[0] != "." and not _is_bare_init(path)


def _is_bare_init(path: Path) -> bool:
    """Return whether a file is an `__init__.py` that holds only a docstring."""
    if path.name != "__init__.py":
        return False
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def with_code_deps(text: str) -> str:
    """Return dvc.yaml with the code lines of every stage's deps replaced by what the stage depends on."""
    lines, stage, deps, written = [], "", [], False
    for line in text.splitlines():
        if name := STAGE_NAME.match(line):
            stage = name.group(1)
        if command := STAGE_COMMAND.match(line):
            deps, written = code_deps(stage, command.group(1)), False
        if not CODE_LINE.match(line):
            lines.append(line)
        elif not written:
            indent = line[: line.index("-")]
            lines += [f"{indent}- {file}" for file in deps]
            written = True
    return "\n".join(lines) + "\n"


def main() -> int:
    """Compare dvc.yaml with the imports, or write it."""
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
