"""`segdistill ui`: serves to this machine alone, follows the sweep, and leaves no process behind."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from segdistill.cli import app, project
from segdistill.params.read import load_params
from segdistill.tracking.mlflow import track
from support.sweep_on_disk import RUNS, enter_sweep, runs_in
from support.waiting import wait_until

END_S = 20.0


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])  # SIGTERM has the handler of SIGINT
def test_server_and_watcher_end_with_the_command(home, end):
    if end == signal.SIGTERM:
        Path("mlflow.db").unlink()  # both find no store, as in a new project
    port = free_port()
    command = [sys.executable, "-m", "segdistill", "ui", "--port", str(port)]
    with Path("said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
    children: list[psutil.Process] = []
    try:
        wait_until(lambda: "table of runs" in Path("said").read_text(), "the address of the table")
        wait_until(lambda: runs_in().keys() == {"teacher", *RUNS}, "the watcher to bring in the sweep")
        children = psutil.Process(process.pid).children(recursive=True)
        listening = [
            (connection.laddr.ip, connection.laddr.port)
            for child in children
            for connection in child.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {("127.0.0.1", port)}
        addresses = [line for line in Path("said").read_text().splitlines() if "http://" in line]
        assert addresses[-1].startswith(f"table of runs: http://127.0.0.1:{port}/#/experiments/1/runs?searchFilter=")
    finally:
        process.send_signal(end)
        process.wait(END_S)
        _, alive = psutil.wait_procs(children, END_S)
        for child in alive:
            child.kill()
    assert alive == []
    assert "Traceback" not in Path("said").read_text()


def test_a_browser_is_opened_where_there_is_a_display_and_can_be_switched_off(home, monkeypatch):
    opened = []
    monkeypatch.setattr(project.webbrowser, "open", opened.append)
    monkeypatch.setattr(project, "_wait_until_ready", lambda *_: None)
    monkeypatch.setattr(project, "_is_seen", lambda: True)
    monkeypatch.setattr(project, "_child", lambda *_, **__: contextlib.nullcontext(SimpleNamespace(wait=lambda: 0)))
    done = call("ui", "--port", str(free_port()))
    assert done.exit_code == 0, done.output
    (address,) = opened
    assert done.output.splitlines()[-1] == f"table of runs: {address}"
    assert call("ui", "--port", str(free_port()), "--no-browser").exit_code == 0
    assert len(opened) == 1


def test_a_port_in_use_is_one_line(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = call("ui", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1
    assert "which is in use on 127.0.0.1" in done.stderr


@pytest.mark.parametrize(
    ("revision", "command"),  # of a newer MLflow, and of an older one
    [("ffffffffffff", ["track"]), ("75868b020152", ["ui", "--port", str(free_port())])],
)
def test_a_store_of_another_mlflow_is_one_line(home, revision, command):
    assert track(load_params(), Path("metrics"))
    with sqlite3.connect("mlflow.db") as database:
        database.execute("update alembic_version set version_num = ?", (revision,))
    done = subprocess.run(
        [sys.executable, "-m", "segdistill", *command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "mlflow.db was made by another version of MLflow" in done.stderr
    assert "segdistill track" in done.stderr


def test_a_project_may_be_in_a_folder_of_any_name(tmp_path, monkeypatch):
    name = "C# a&b; é, 50%20off?"
    (tmp_path / name).mkdir()
    enter_sweep(tmp_path / name, monkeypatch)
    command = [sys.executable, "-m", "segdistill", "track"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing next to it"
    assert len(list(Path("mlartifacts").rglob("*.png"))) == 5, "val images: one of the teacher, two of each run"
    with sqlite3.connect("mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (3,)
