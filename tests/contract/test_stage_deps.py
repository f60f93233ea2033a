"""The code that dvc.yaml names for each stage is what the stage imports, as few paths as that takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.scripts_as_modules import load_script

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "segdistill"
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
MAX_PATHS = 8  # of src/ in the deps of a stage
stage_deps = load_script(ROOT / "tools" / "stage_deps.py")


def deps_of(stage: str) -> list[str]:
    described = PIPELINE[stage]
    return described.get("do", described)["deps"]


def test_code_deps_of_the_pipeline_are_up_to_date():
    command = [sys.executable, str(ROOT / "tools" / "stage_deps.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", PIPELINE)
def test_stage_names_few_paths_of_code(stage):
    assert len([path for path in deps_of(stage) if path.startswith("src/")]) <= MAX_PATHS


def test_exempt_code_exists_and_has_a_reason():
    lists = [stage_deps.EXEMPT, *stage_deps.EXEMPT_IN.values()]
    for name, reason in (entry for exempt in lists for entry in exempt.items()):
        assert (PACKAGE / name).exists(), name
        assert len(reason) > 20, name
    assert set(stage_deps.EXEMPT_IN) | set(stage_deps.NETWORK_OF) <= set(PIPELINE)
    assert all((PACKAGE / name).is_dir() for name in stage_deps.SHARED)


def test_inits_of_packages_that_stages_share_are_bare():
    """An `__init__.py` with code would be one path more in every stage that imports its package."""
    bare = {path.parent.name: stage_deps._is_bare_init(path) for path in PACKAGE.glob("*/__init__.py")}
    assert [name for name in stage_deps.SHARED if name != "report" and not bare[name]] == []


# A made-up tree: imports in functions, a cycle, a package that is used whole, a shared one, a data file, exempt code.
TREE = {
    "stages/go.py": "from segdistill.a import one\nimport numpy\n",
    "src/segdistill/__init__.py": '"""A docstring."""\n',
    "src/segdistill/a.py": "def one():\n    from segdistill import b\n    return b\n",
    "src/segdistill/b.py": (
        'import segdistill.pkg.d\nfrom segdistill import a\nPAGE = Path(__file__).with_name("page.html")\n'
        "from segdistill.core import errors\nfrom segdistill.data import one, two\n"
    ),
    "src/segdistill/page.html": "",
    "src/segdistill/core/__init__.py": "",
    "src/segdistill/core/errors.py": "",
    "src/segdistill/data/__init__.py": "",
    "src/segdistill/data/one.py": "",
    "src/segdistill/data/two.py": "",
    "src/segdistill/data/three.py": "",
    "src/segdistill/pkg/__init__.py": "CODE = 1\n",
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
    "src/segdistill/core/__init__.py",
    "src/segdistill/core/errors.py",
    "src/segdistill/data/__init__.py",
    "src/segdistill/data/one.py",
    "src/segdistill/data/two.py",
    "src/segdistill/page.html",
    "src/segdistill/part/__init__.py",
    "src/segdistill/part/used.py",
    "src/segdistill/pkg/__init__.py",
    "src/segdistill/pkg/d.py",
    "src/segdistill/pkg/inner/__init__.py",
    "src/segdistill/pkg/inner/e.py",
    "stages/go.py",
]
CODE_DEPS = [
    "src/segdistill/a.py",
    "src/segdistill/b.py",
    "src/segdistill/data",
    "src/segdistill/page.html",
    "src/segdistill/part/used.py",
    "src/segdistill/pkg",
    "stages/go.py",
]


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Point tools/stage_deps.py at the made-up tree."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(stage_deps, "ROOT", tmp_path)
    monkeypatch.setattr(stage_deps, "SOURCE", tmp_path / "src")
    return tmp_path


def test_closure_follows_every_import(made_up):
    assert stage_deps.import_closure(made_up / "stages" / "go.py") == CLOSURE


def test_whole_and_shared_packages_are_named_once_and_exempt_code_is_left_out(made_up):
    assert stage_deps.code_deps("go", "stages/go.py") == CODE_DEPS


def test_code_that_is_exempt_in_one_stage_is_left_out_there(made_up, monkeypatch):
    monkeypatch.setattr(stage_deps, "EXEMPT_IN", {"go": {"data": "a reason"}})
    assert stage_deps.code_deps("go", "stages/go.py") == [path for path in CODE_DEPS if not path.endswith("/data")]


def test_code_deps_are_replaced_and_others_kept(made_up):
    before = "stages:\n  go:\n    cmd: exec python stages/go.py\n    deps:\n"
    before += "      - data/x\n      - src/segdistill/unused.py\n      - stages/go.py\n    outs:\n      - models/y\n"
    written = stage_deps.with_code_deps(before)
    after = yaml.safe_load(written)["stages"]["go"]
    assert after == {"cmd": "exec python stages/go.py", "deps": ["data/x", *CODE_DEPS], "outs": ["models/y"]}
    assert stage_deps.with_code_deps(written) == written
