"""Passwords are not shown or copied; names are text wherever they are shown, and never a command."""

from __future__ import annotations

import ast
import csv
import html
import re
import urllib.parse
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from segdistill.data.prepared import PreparedData
from segdistill.prepare.run import prepare
from segdistill.report.page import write_report
from segdistill.report.terminal import markdown, print_summary
from segdistill.results.summary import of_rows, summarise
from segdistill.tracking.rows import row_of
from segdistill.tracking.store import cause, check_reachable, find_store
from support.fake_metrics import sweep_params, write_metrics
from support.finished_project import PASSWORD
from support.folder_on_disk import describe, settings, write_frames
from support.stage_calls import ROOT

EVIL = "<script>alert(1)</script>"
CALLS = (
    "prepare",
    "teacher_check",
    "teacher_logits --kind views",
    "distill --run taught",
    "steplr_finetune --run taught",
    "export_onnx --run taught",
    "benchmark",
    "report",
    "show",
    "track",
    "ui",
)


@pytest.mark.parametrize("call", CALLS)
def test_a_password_in_params_is_refused_by_all(project, refused, call):
    """By all: `dvc.lock` keeps the section `tracking` of a stage that succeeded, and git keeps params.yaml."""
    project.set_params(tracking__uri=f"http://me:{PASSWORD}@127.0.0.1:5000")
    message = refused(call, ["tracking.uri: holds a password", "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"])
    assert PASSWORD not in message


MISPLACED = {
    "in the query": {"tracking__uri": f"postgresql://host/mlflow?user=me&password={PASSWORD}"},
    "badly quoted": {"tracking__uri": f"postgresql://me:'/@{PASSWORD}/@host/mlflow"},
    "as the section": {"tracking": f"http://me:{PASSWORD}@host"},
    "as a list": {"tracking__uri": [f"http://me:{PASSWORD}@host", f"http://me:{PASSWORD}@other"]},
    "as a key": {"tracking": {f"uri:http://me:{PASSWORD}@host": None}},
    "as another value": {"data__source": f"http://me:'{PASSWORD}'@host"},
}


@pytest.mark.parametrize("name", MISPLACED)
def test_no_message_about_params_holds_a_password(project, refused, name):
    project.set_params(**MISPLACED[name])
    assert PASSWORD not in refused("prepare", ["params.yaml has values that are not allowed"])


@pytest.mark.parametrize("uri", ["http://host:5000", "postgresql://me@host/mlflow", "sqlite:///a:b@c/mlflow.db", None])
def test_a_uri_without_a_password_is_allowed(project, uri):
    project.set_params(tracking__uri=uri)
    done = project.call("prepare")
    assert done.exit_code == 0, done.err


@pytest.mark.parametrize(
    "password", ["s3cret", "p/s3cret", "p@s3cret", "p?s3cret", "p[s3cret", "it's s3cret", "p%20s3cret", "p:s3cret"]
)
def test_no_warning_quotes_a_password_whatever_is_in_it(monkeypatch, password):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{password}@127.0.0.1:1/")
    store = find_store(None)
    quoting = [
        ValueError(f"no good: {store.uri}"),
        ValueError(f"invalid literal: {password!r}"),
        ValueError(urllib.parse.unquote(password)),
    ]
    with pytest.raises((OSError, ValueError)) as raised:
        check_reachable(store)
    for error in (*quoting, raised.value):
        assert "s3cret" not in f"{store.name} {cause(error, store)}"


def test_a_run_named_like_a_script_is_refused(project, refused):
    runs = project.params()["runs"]
    project.set_params(runs=runs | {EVIL: dict(runs["taught"])})
    for call in ("report", "show"):
        refused(call, [f"runs.{EVIL}: a run is named by"])


@pytest.fixture
def evil_summary(tmp_path):
    """A summary with names that no stage would have let in."""
    summary = summarise(sweep_params(), write_metrics(tmp_path / "metrics"))
    names = {"a03": EVIL, "light": "[bold red]a|b[/]"}
    return of_rows([replace(row, run=names.get(row.run, row.run)) for row in summary.rows], summary.benchmark)


def test_a_frame_of_a_folder_that_is_named_like_a_script_is_text_in_the_report(tmp_path):
    named = "<img src=x onerror=alert(1)><script>alert(1)<"  # of a file: what a slash would end is no name
    describe(tmp_path / "data")
    write_frames(tmp_path / "data", ("a", "b", "c"), (named,))
    prepare(settings(tmp_path / "data"), 0, tmp_path / "prepared", workers=1)
    (frame,) = PreparedData.open(tmp_path / "prepared").val.names
    assert frame == named
    metrics = write_metrics(tmp_path / "metrics")
    for record in metrics.rglob("frames.csv"):
        rows = list(csv.reader(record.open(newline="", encoding="utf-8")))
        with record.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([cell.replace("city_000000_000000", frame) for cell in row] for row in rows)
    write_report(summarise(sweep_params(), metrics), metrics, tmp_path / "index.html")
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert html.escape(frame) in page
    assert "<img src=x" not in page
    assert "alert(1)<" not in page


def test_names_on_the_terminal_are_no_markup(evil_summary, tmp_path):
    with (tmp_path / "shown").open("w+", encoding="utf-8") as file:
        print_summary(evil_summary, console=Console(file=file, width=200))
        file.seek(0)
        shown = file.read()
    assert EVIL in shown
    assert "[bold red]a|b[/]" in shown


def test_names_in_markdown_are_no_html(evil_summary):
    page = markdown(evil_summary)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "[bold red]a\\|b[/]" in page


@pytest.mark.parametrize("run", ["teacher", "a03"])
@pytest.mark.parametrize("name", ["{}.pth", "{}.onnx"])
def test_the_note_of_an_mlflow_row_is_no_html(run, name):
    """A teacher bears the name of its ONNX file, which has no slash."""
    checkpoint = {"checkpoint": name.format("<img src=x onerror=alert(1)>")}
    note = row_of(sweep_params(teacher=checkpoint), run, "data").tags["mlflow.note.content"]
    shown = run == "teacher" or name.endswith("onnx")
    assert ("&lt;img src=x onerror=alert(1)&gt;" in note) == shown
    assert "<img" not in note


def test_no_string_becomes_a_command():
    forbidden = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec"}
    modules = [path for folder in ("src", "stages", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 50
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert ast.unparse(node.func) not in forbidden, where
                assert not any(keyword.arg == "shell" for keyword in node.keywords), where


def test_the_pipeline_hands_a_shell_nothing_but_names_of_runs_kinds_and_seeds():
    """DVC runs a stage's command in a shell; what it fills in is checked by `load_params`, and comes from no data."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    commands = [stage.get("do", stage)["cmd"] for stage in stages.values()]
    filled = {name for command in commands for name in re.findall(r"\$\{(.*?)\}", command)}
    assert filled == {"key", "item"}  # RUN or RUN-SEED, and a kind of logits
    assert all(command.startswith("exec python stages/") for command in commands)
