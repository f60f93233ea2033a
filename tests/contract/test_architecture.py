"""The rules of the code that a reader may rely on: layers, who imports what, lengths, names, dependencies of stages."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segdistill.params.model import Params
from support.scripts_as_modules import load_script

ROOT = Path(__file__).parents[2]


SOURCE = ROOT / "src"


PACKAGE = SOURCE / "segdistill"


MODULES = sorted(PACKAGE.rglob("*.py"))


STAGES = sorted((ROOT / "stages").glob("*.py"))


PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


# The lowest layers, by module or package of segdistill; whatever is not named here is a procedure, of layer 3.
# 0: facts, without torch. 1: pure torch. 2: things with state.
LAYERS = {
    0: "__init__ base progress provenance cityscapes label_coding",
    1: "frames nets timing",
    2: "scoring logits training teachers onnx_model sources synthetic engines val_record summary tracking",
}


LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}


PROCEDURES = 3


# The params section that bears another name than its stage, and why.
SECTION_OF = {
    "prepare": "data",  # what is prepared
    "teacher-check": "teacher",  # what is checked
    "steplr-finetune": "finetune",  # also a key of a run, where the short word is typed
    "export-onnx": "export",  # as finetune
    "report": "tracking",  # where the report's rows go
}


stage_deps = load_script(ROOT / "tools" / "stage_deps.py")


def name_of(path: Path) -> str:
    """The module or package right under segdistill that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(path: Path) -> int:
    return LAYER_OF.get(name_of(path), PROCEDURES)


def imports_of(path: Path) -> set[Path]:
    """The files of ours that `path` names in an import anywhere."""
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


def test_every_module_of_a_layer_exists():
    assert set(LAYER_OF) - {name_of(path) for path in MODULES} == set()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_downward(path):
    upward = {relative(other) for other in imports_of(path) if layer_of(other) > layer_of(path)}
    assert not upward, f"{relative(path)} of layer {layer_of(path)} imports from above"


def test_no_module_imports_itself_by_a_detour():
    list(graphlib.TopologicalSorter({path: imports_of(path) for path in MODULES}).static_order())


def test_no_package_imports_itself_by_a_detour():
    graph = {name_of(path): set() for path in MODULES}
    for path in MODULES:
        graph[name_of(path)] |= {name_of(other) for other in imports_of(path)} - {name_of(path)}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        ({"torch", "torchvision"}, lambda path: layer_of(path) > 0),
        (
            {"onnx", "onnxruntime", "onnxscript"},
            lambda path: "onnx" in relative(path),
        ),
        ({"mlflow"}, lambda path: name_of(path) == "tracking"),
        ({"pickle", "cloudpickle", "dill", "joblib"}, lambda path: False),
    ],
    ids=["torch", "onnx", "mlflow", "pickle"],
)
def test_a_package_is_imported_where_it_belongs_only(packages, allowed):
    assert [relative(path) for path in MODULES + STAGES if foreign_imports(path) & packages and not allowed(path)] == []


def test_nothing_is_unpickled():
    for path in MODULES + STAGES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{relative(path)}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                assert "allow_pickle" not in ast.unparse(node), f"{relative(path)}:{node.lineno}"


def loaded_by(path: Path) -> set[str]:
    """What a fresh process has loaded after all imports that stand in `path`."""
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
        ("distill", {"mlflow", "onnx", "onnxruntime"}),
    ],
)
def test_a_stage_loads_nothing_heavy_that_it_does_not_use(stage, heavy):
    path = ROOT / "stages" / f"{stage}.py"
    if not path.exists():
        pytest.skip(f"there is no {relative(path)} yet")
    assert loaded_by(path) & heavy == set()


@pytest.mark.parametrize("path", STAGES, ids=relative)
def test_a_stage_only_wires(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


@pytest.mark.parametrize("path", STAGES, ids=relative)
def test_a_stage_can_be_stopped_while_it_loads(path):
    """Ctrl-C is one line within stage_process only, and torch takes seconds to load."""
    first = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    modules = {node.module for node in first if node.module.split(".")[0] == "segdistill"}
    assert modules == {"segdistill.core.stage"}
    assert loaded_by(ROOT / "src/segdistill/base/stage_process.py") & {"torch", "numpy", "pydantic"} == set()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 280


@pytest.mark.parametrize("path", MODULES + STAGES, ids=relative)
def test_functions_are_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in tree if isinstance(node, functions)}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_no_file_is_a_drawer():
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [relative(path) for path in MODULES + STAGES if path.stem in drawers] == []


def test_no_module_bears_the_name_of_an_artifact_folder():
    assert {path.stem for path in MODULES} & {"models", "metrics", "onnx", "reports"} == set()


def commands(stage: dict) -> str:
    return stage.get("do", stage)["cmd"]


def params_of(stage: dict) -> list[str]:
    return stage.get("do", stage)["params"]


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_runs_the_file_of_its_name(name):
    assert commands(PIPELINE[name]).split()[:2] == ["python", f"stages/{name.replace('-', '_')}.py"]


def test_every_stage_file_has_its_stage():
    assert {path.stem for path in STAGES} == {name.replace("-", "_") for name in PIPELINE}


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_reads_the_section_of_its_name(name):
    section = SECTION_OF.get(name, name.replace("-", "_"))
    assert section in Params.model_fields
    assert section in {param.split(".")[0] for param in params_of(PIPELINE[name])}


def test_sections_that_are_named_otherwise_are_no_more_than_needed():
    assert [name for name in SECTION_OF if name.replace("-", "_") in Params.model_fields] == []


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_depends_on_sections_that_exist(name):
    assert {param.split(".")[0] for param in params_of(PIPELINE[name])} <= set(Params.model_fields)
