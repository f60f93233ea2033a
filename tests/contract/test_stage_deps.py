"""The code that dvc.yaml names for each stage is what the stage imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.scripts_as_modules import load_script

ROOT = Path(__file__).parents[2]
stage_deps = load_script(ROOT / "tools" / "stage_deps.py")


def test_code_dependencies_of_the_pipeline_are_up_to_date():
    command = [sys.executable, str(ROOT / "tools" / "stage_deps.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


TREE = {
    "stages/go.py": "from segdistill.a import one\nimport numpy\n",
    "src/segdistill/__init__.py": "",
    "src/segdistill/a.py": "def one():\n    from segdistill import b\n    return b\n",
    "src/segdistill/b.py": (
        'import segdistill.pkg.d\nfrom segdistill import a\nPAGE = Path(__file__).with_name("page.html")\n'
    ),
    "src/segdistill/page.html": "",
    "src/segdistill/pkg/__init__.py": "",
    "src/segdistill/pkg/d.py": (
        "from segdistillery import unused\nfrom torch import nn\nfrom segdistill.pkg.inner import e\n"
        "from segdistill.part.used import nothing\n"
    ),
    "src/segdistill/pkg/inner/__init__.py": "",
    "src/segdistill/pkg/inner/e.py": "",
    "src/segdistill/part/__init__.py": "",
    "src/segdistill/part/used.py": "",
    "src/segdistill/part/unused.py": "",
    "src/segdistill/unused.py": "from segdistill import a\n",
    # Files that DVC does not look at.
    "src/segdistill/pkg/__pycache__/d.pyc": "",
    "src/segdistill/pkg/.d.py.swp": "",
}


CLOSURE = [
    "src/segdistill/__init__.py",
    "src/segdistill/a.py",
    "src/segdistill/b.py",
    "src/segdistill/page.html",
    "src/segdistill/part/__init__.py",
    "src/segdistill/part/used.py",
    "src/segdistill/pkg/__init__.py",
    "src/segdistill/pkg/d.py",
    "src/segdistill/pkg/inner/__init__.py",
    "src/segdistill/pkg/inner/e.py",
    "stages/go.py",
]


IN_FOLDERS = [*(file for file in CLOSURE[:-1] if "/pkg/" not in file), "src/segdistill/pkg", "stages/go.py"]


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """tools/stage_deps.py, looking at a made-up tree: imports in functions, a cycle, a package, a data file."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(stage_deps, "ROOT", tmp_path)
    monkeypatch.setattr(stage_deps, "SOURCE", tmp_path / "src")
    return tmp_path


def test_the_closure_follows_every_import_of_ours(made_up):
    assert stage_deps.import_closure(made_up / "stages" / "go.py") == CLOSURE


def test_a_folder_that_is_imported_whole_is_named_once(made_up):
    assert stage_deps.with_whole_folders(CLOSURE) == IN_FOLDERS


def test_code_dependencies_are_replaced_and_others_kept(made_up):
    before = (
        "stages:\n  go:\n    cmd: python stages/go.py\n    deps:\n      - data/x\n      - src/segdistill/unused.py\n"
    )
    before += "      - stages/go.py\n    outs:\n      - models/y\n"
    after = yaml.safe_load(stage_deps.with_code_deps(before))["stages"]["go"]
    assert after == {"cmd": "python stages/go.py", "deps": ["data/x", *IN_FOLDERS], "outs": ["models/y"]}


def test_dependencies_that_are_right_stay_as_they_are(made_up):
    text = "stages:\n  go:\n    cmd: python stages/go.py\n    deps:\n      - stages/go.py\n"
    right = stage_deps.with_code_deps(text)
    assert stage_deps.with_code_deps(right) == right
