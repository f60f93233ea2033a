"""The command line as a whole: quick to start, helpful, and of use to a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segdistill.cli import app

COMMANDS = ("show", "compare", "track", "ui", "predict", "synthesize")
HEAVY = {"torch", "torchvision", "mlflow", "onnx", "onnxruntime", "pandas", "plotly", "numpy", "PIL"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["compare", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    done = python(
        "import sys\nfrom segdistill.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print('loaded', *sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.rpartition("loaded")[2].split()) & HEAVY == set()


def test_help_lists_every_command():
    output = CliRunner().invoke(app, ["--help"]).output
    assert all(command in output for command in COMMANDS)
    assert "Exit codes" in output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_explained(command):
    (found,) = [info for info in app.registered_commands if info.callback.__name__ == command]
    assert found.callback.__doc__
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "150"}).output
    for line in output.splitlines():
        if "  --" in line and "--help" not in line:
            words = line.strip("│ ").split("  ")
            assert len([word for word in words if word.strip()]) > 1, f"{command}: {line}"


@pytest.mark.parametrize("command", ["predict", "compare", "synthesize"])
def test_examples_name_the_command(command):
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "150"}).output
    assert f"\n segdistill {command} " in output


@pytest.mark.parametrize("arguments", [["none"], ["show", "--none"], ["predict"], ["ui", "--port", "x"]])
def test_wrong_usage_has_exit_code_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_the_version_is_told():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == "0.1.0"


def completed(line: str, folder: Path) -> list[str]:
    """What bash would offer at the end of `line`."""
    done = python(
        f"import os; os.chdir({str(folder)!r}); from segdistill.cli import app; app(prog_name='segdistill')",
        _SEGDISTILL_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split(" ")) - 1),
    )
    return done.stdout.split()


def test_a_shell_completes_commands(tmp_path):
    assert completed("segdistill pre", tmp_path) == ["predict"]


def test_a_shell_completes_runs_that_are_not_named_yet(tmp_path):
    (tmp_path / "params.yaml").write_text("runs:\n  vanilla: {}\n  a03-lr01: {}\n  a07: {}\n")
    assert completed("segdistill compare ", tmp_path) == ["teacher", "vanilla", "a03-lr01", "a07"]
    assert completed("segdistill compare a03-lr01 a", tmp_path) == ["a07"]


@pytest.mark.parametrize("params", [None, "runs: 7", ": {", "- a"])
def test_without_runs_a_shell_completes_nothing(params, tmp_path):
    if params is not None:
        (tmp_path / "params.yaml").write_text(params)
    assert completed("segdistill compare v", tmp_path) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell):
    done = python(f"from segdistill.cli import app; app(['--show-completion', {shell!r}], prog_name='segdistill')")
    assert done.returncode == 0, done.stderr
    assert "_SEGDISTILL_COMPLETE" in done.stdout
