"""The check of a GPU: what it refuses, what it downloads, and a trial of all of it on a CPU."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from support.scripts_as_modules import load_script

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tools" / "gpu_check.py"
CUDA_ONLY = {"compiled", "teacher-memory"}


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture
def script():
    return load_script(SCRIPT)


def refusal(script, monkeypatch, capsys, *arguments: str) -> str:
    """The one line on stderr of a call that ends with exit code 1."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_machine_without_a_gpu_is_one_line(script, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no CUDA device; --device cpu --small tries" in refusal(script, monkeypatch, capsys)


def test_full_sizes_on_a_cpu_are_refused(script, monkeypatch, capsys):
    assert "add --small" in refusal(script, monkeypatch, capsys, "--device", "cpu")


def test_a_check_that_is_not_there_is_refused(script, monkeypatch, capsys):
    err = refusal(script, monkeypatch, capsys, "--device", "cpu", "--small", "--only", "speed")
    assert "--only: found speed; allowed are tests, repeat," in err


def test_packages_are_downloaded_for_the_python_of_the_other_machine(script, monkeypatch):
    called = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: called.append(command) or FakeDone(0))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--download", "wheels", "--python", "3.13"])
    script.main()
    options = ["--only-binary=:all:", "--python-version=3.13", "--dest=wheels"]
    assert called == [[sys.executable, "-m", "pip", "download", *options, *script.PACKAGES]]


def test_pip_that_fails_ends_the_script(script, monkeypatch):
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: FakeDone(1))
    with pytest.raises(SystemExit, match="error: pip install failed"):
        script.pip("install")


class FakeDone:
    """A process that has ended."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode


def test_checks_import_no_other_packages(script):
    """Of this project's modules that the checks load; what torch itself may import does not matter."""
    code = (
        "import sys, benchmarks.gpu\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.partition('.')[0] in ('benchmarks', 'segdistill'): print(module.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    files = done.stdout.split()
    assert len(files) > 50
    imported = {name for file in files for name in top_level_imports(Path(file))} - set(sys.stdlib_module_names)
    of_packages = {"yaml" if name == "pyyaml" else name for name in script.PACKAGES} | {"pydantic_core"}
    on_the_machine = {"torch", "torchvision", "numpy", "PIL", "filelock"}
    assert imported - of_packages - on_the_machine == {"benchmarks", "segdistill"}


def top_level_imports(file: Path) -> set[str]:
    """The first words of what a module imports when it is loaded."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.slow
def test_all_checks_run_on_a_cpu_in_small(tmp_path):
    out = tmp_path / "results.json"
    done = call("--device", "cpu", "--small", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["row"]: row for row in results["rows"]}
    expected = {"tests", "repeat", "frames", "frames-classes", "tiny", "determinism", "teacher", "teacher-written"}
    assert expected | {"1", "2", "3", "loading"} <= set(rows)
    assert not CUDA_ONLY & set(rows)
    for name in ("tests", "repeat", "frames", "tiny"):
        assert rows[name]["value"] <= float(rows[name]["target"].split()[-1]), rows[name]
    assert results["conditions"]["device"] == "cpu"
    assert set(results["conditions"]["seconds"]) >= {"tests", "repeat", "steps"}
    assert "| tiny |" in done.stdout
