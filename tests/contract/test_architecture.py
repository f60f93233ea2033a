"""The rules of the code: imports point downward, who imports what, names, and which stage reads which section."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segdistill.params.model import Params
from segdistill.params.stages import REPEAT
from support.scripts_as_modules import load_script

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "segdistill"
MODULES = sorted(PACKAGE.rglob("*.py"))
STAGES = sorted((ROOT / "stages").glob("*.py"))
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

# Modules and packages of segdistill, from the bottom up: each may import those before it.
LAYERS = [
    *("__init__", "core", "paths", "params", "formats", "parallel", "data", "nets", "networks", "scoring", "training"),
    *("teacher", "teacher_logits", "student", "export", "latency", "prepare"),
    *("results", "report", "tracking", "compare", "predict", "sweep", "search", "cli", "__main__"),
]
# What no output of a stage depends on, or what is only facts: must load without torch.
WITHOUT_TORCH = {
    *(
        "core",
        "params",
        "paths",
        "formats",
        "prepare",
        "results",
        "report",
        "tracking",
        "compare",
        "sweep",
        "search",
        "cli",
    ),
}

# The params section of a stage that has another name, and why.
SECTION_OF = {
    "prepare": "data",  # what is prepared
    "teacher-check": "teacher",  # what is checked
    "steplr-finetune": "finetune",  # also a key of a run, where the short word is typed
    "export-onnx": "export",  # as finetune
}

stage_deps = load_script(ROOT / "tools" / "stage_deps.py")


def name_of(path: Path) -> str:
    """The module or package right under segdistill that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[Path]:
    """The files of segdistill that `path` imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if stage_deps.module_file(name) else node.module for name in whole}
    return {stage_deps.module_file(name) for name in names if name.split(".")[0] == "segdistill"} - {path}


def foreign_imports(path: Path) -> set[str]:
    """Top-level names that `path` imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_layers_name_every_package_once():
    assert sorted(LAYERS) == sorted({name_of(path) for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_downward(path):
    allowed = LAYERS[: LAYERS.index(name_of(path)) + 1]
    assert sorted(relative(other) for other in imports_of(path) if name_of(other) not in allowed) == []


def test_modules_do_not_import_each_other_in_circles():
    try:
        graphlib.TopologicalSorter({path: imports_of(path) for path in MODULES}).prepare()
        circle = []
    except graphlib.CycleError as error:
        circle = [relative(path) for path in error.args[1]]
    assert circle == []


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        ({"torch", "torchvision"}, lambda path: name_of(path) not in WITHOUT_TORCH),
        (
            {"onnx", "onnxruntime", "onnxscript"},
            lambda path: name_of(path) == "export" or "onnx" in path.stem,
        ),
        ({"timm"}, lambda path: path.stem == "timm_backbone"),
        ({"mlflow"}, lambda path: name_of(path) == "tracking"),
        ({"optuna", "sqlalchemy"}, lambda path: path == PACKAGE / "search" / "study.py"),
        ({"ray"}, lambda path: path == PACKAGE / "sweep" / "cluster.py"),
        ({"pickle", "cloudpickle", "dill", "joblib"}, lambda path: False),
    ],
    ids=["torch", "onnx", "timm", "mlflow", "optuna", "ray", "pickle"],
)
def test_foreign_package_is_imported_only_where_it_belongs(packages, allowed):
    assert [relative(path) for path in MODULES + STAGES if foreign_imports(path) & packages and not allowed(path)] == []


def test_nothing_is_unpickled():
    for path in MODULES + STAGES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{relative(path)}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert "allow_pickle" not in ast.unparse(node), f"{relative(path)}:{node.lineno}"


def loaded_by(path: Path) -> set[str]:
    """The modules in a fresh process after all imports of `path`."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    imports = [ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    command = [sys.executable, "-c", "\n".join([*imports, "import sys", "print(' '.join(sys.modules))"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("stage", "heavy"),
    [
        ("prepare", {"torch", "torchvision", "mlflow", "onnxruntime"}),
        ("report", {"torch", "torchvision", "mlflow", "onnxruntime"}),
        ("distill", {"mlflow", "onnx", "onnxruntime", "timm"}),
    ],
)
def test_stage_loads_nothing_heavy_that_it_does_not_use(stage, heavy):
    assert loaded_by(ROOT / "stages" / f"{stage}.py") & heavy == set()


@pytest.mark.parametrize("path", STAGES, ids=relative)
def test_stage_only_wires(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("path", STAGES, ids=relative)
def test_stage_imports_only_stage_process_at_its_top(path):
    """Outside stage_process Ctrl-C prints a traceback, and torch takes seconds to load."""
    first = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    modules = {node.module for node in first if node.module.split(".")[0] == "segdistill"}
    assert modules == {"segdistill.core.stage"}


def test_stage_process_loads_at_once():
    assert loaded_by(PACKAGE / "core" / "stage.py") & {"torch", "numpy", "pydantic"} == set()


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [relative(path) for path in MODULES + STAGES if path.stem in drawers] == []


def test_no_module_has_the_name_of_an_artifact_folder():
    assert {path.stem for path in MODULES} & {"models", "metrics", "onnx", "reports"} == set()


def commands(stage: dict) -> str:
    return stage.get("do", stage)["cmd"]


def params_of(stage: dict) -> list[str]:
    return stage.get("do", stage)["params"]


def repeated(name: str) -> str:
    """The stage whose file and section a stage has: `distill-repeat` is `distill` with other seeds."""
    return name.removesuffix(REPEAT)


@pytest.mark.parametrize("name", PIPELINE)
def test_stage_runs_the_file_of_its_name(name):
    assert commands(PIPELINE[name]).removeprefix("exec ").split()[:2] == [
        "python",
        f"stages/{repeated(name).replace('-', '_')}.py",
    ]


def test_every_stage_file_has_a_stage():
    assert {path.stem for path in STAGES} == {repeated(name).replace("-", "_") for name in PIPELINE}


@pytest.mark.parametrize("name", PIPELINE)
def test_stage_reads_the_section_of_its_name(name):
    section = SECTION_OF.get(repeated(name), repeated(name).replace("-", "_"))
    assert section in Params.model_fields
    assert section in {param.split(".")[0] for param in params_of(PIPELINE[name])}


def test_stages_with_another_section_name_have_no_section_of_their_own():
    assert [name for name in SECTION_OF if name.replace("-", "_") in Params.model_fields] == []


@pytest.mark.parametrize("name", PIPELINE)
def test_stage_depends_on_sections_that_exist(name):
    assert {param.split(".")[0] for param in params_of(PIPELINE[name])} <= set(Params.model_fields)
