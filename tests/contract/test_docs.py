"""What the documents say is there: files they link to, commands they name, messages they quote."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)?(?:#([\w-]+))?\)")
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:\.venv/bin/)?(make|segdistill|python)\s+(\S+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for file, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if file.startswith(("http://", "https://", "mailto:")):
            continue
        target = (page.parent / file) if file else page
        if not target.exists():
            broken.append(file)
        elif anchor and anchor not in anchors(target):
            broken.append(f"{file}#{anchor}")
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Headings as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    from segdistill.cli import app

    targets = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    subcommands = {command.name or command.callback.__name__ for command in app.registered_commands}
    known = {"make": targets, "segdistill": subcommands}
    for block in SHELL.findall(page.read_text(encoding="utf-8")):
        for program, argument in COMMAND.findall(block):
            if argument.startswith("-"):
                continue
            if program == "python":
                assert (ROOT / argument).is_file(), f"python {argument}"
            else:
                assert argument in known[program], f"{program} {argument}"


def test_quoted_messages_are_those_of_the_code():
    constants = [os.strerror(number) for number in (28,)]
    for file in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants += [node.value for node in ast.walk(tree) if isinstance(getattr(node, "value", None), str)]
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 20
    unknown = []
    for message in messages:
        parts = [part for part in re.split(r"…|'", message) if len(part.strip(" ;:,()")) > 2]
        unknown += [(message, part) for part in parts if not any(part.strip(" ;:,") in text for text in constants)]
    assert unknown == []


def test_the_workflow_calls_what_is_here():
    """CI's own files: steps that run something run a make target, and the paths they show are written."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    workflows = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")]
    jobs = [job for workflow in workflows for job in workflow["jobs"].values()]
    scripts = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    gitlab = yaml.safe_load((ROOT / ".gitlab-ci.yml").read_text())
    scripts += [line for job in ("tests", "rerun") for line in gitlab[job]["script"]]
    called = [target for script in scripts for target in re.findall(r"\bmake ([\w-]+)", script)]
    assert len(called) == 2
    assert set(called) <= targets
    assert scripts.count(".ci/run") == 2
    assert os.access(ROOT / ".ci/run", os.X_OK)
