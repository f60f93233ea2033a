"""The command line as a whole: quick to start, helpful, and of use to a shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segdistill.cli import app

COMMANDS = ("show", "compare", "track", "ui", "predict", "synthesize")
HEAVY = {"torch", "torchvision", "mlflow", "onnx", "onnxruntime", "pandas", "plotly", "numpy", "PIL"}


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom segdistill.cli import app\n"
        "for command in ([], ['predict'], ['compare']):\n"
        "    try:\n        app([*command, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "print('loaded', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_reads_well_in_80_columns(command):
    (found,) = [info for info in app.registered_commands if info.callback.__name__ == command]
    _, *further = found.callback.__doc__.split("\n\n")
    lines = [line.strip() for paragraph in further for line in paragraph.strip().splitlines()[:-1]]
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "80"}).output
    # Lines after the first paragraph stay lines: a longer one would leave a word or two between it and the next.
    assert [line for line in lines if f" {line} " not in output] == []
    assert "<int range>" not in output or command == "ui"


@pytest.mark.parametrize("command", ["predict", "compare", "synthesize"])
def test_examples_name_the_command(command):
    output = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "150"}).output
    assert f"\n segdistill {command} " in output


@pytest.mark.parametrize("arguments", [["none"], ["show", "--none"], ["predict"], ["ui", "--port", "x"]])
def test_wrong_usage_has_exit_code_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_the_version_is_told():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == "0.1.0"


@pytest.fixture
def completed(tmp_path, monkeypatch):
    """completed(line): what bash would offer at the end of `line`, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def ask(line: str) -> list[str]:
        variables = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        variables["_SEGDISTILL_COMPLETE"] = "complete_bash"
        return CliRunner().invoke(app, [], prog_name="segdistill", env=variables).output.split()

    return ask


def test_a_shell_completes_commands(completed):
    assert completed("segdistill pre") == ["predict"]


def test_a_shell_completes_runs_that_are_not_named_yet(completed):
    Path("params.yaml").write_text("runs:\n  vanilla: {}\n  a03-lr01: {}\n  a07: {}\n")
    assert completed("segdistill compare ") == ["teacher", "vanilla", "a03-lr01", "a07"]
    assert completed("segdistill compare a03-lr01 a") == ["a07"]


@pytest.mark.parametrize("params", [None, "runs: 7", ": {", "- a"])
def test_without_runs_a_shell_completes_nothing(params, completed):
    if params is not None:
        Path("params.yaml").write_text(params)
    assert completed("segdistill compare v") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell, monkeypatch):
    # Else typer looks for the shell that started the tests, which may be none that it knows.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = CliRunner().invoke(app, ["--show-completion", shell], prog_name="segdistill")
    assert done.exit_code == 0, done.output
    assert "_SEGDISTILL_COMPLETE" in done.output
