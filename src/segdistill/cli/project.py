"""The commands about the sweep in the current folder: `show`, `track` and `ui`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from typing import Annotated

import typer

from segdistill.core.errors import UserError, exit_on_user_error
from segdistill.paths import METRICS, REPORT

START_S = 180.0  # give up on an MLflow server that is not ready by then
STOP_S = 10.0


def show(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="as Markdown, for a page")] = False,
    sort: Annotated[str | None, typer.Option("--sort", metavar="METRIC", help="the best first, as mean_iou")] = None,
    top: Annotated[int | None, typer.Option("--top", metavar="N", min=1, help="at most N lines")] = None,
    group: Annotated[bool, typer.Option("--group", help="a line per setting, over its seeds")] = False,
) -> None:
    """Print every run of the sweep as a table, where to read on, and which student to ship and why."""
    from segdistill.params.read import load_params
    from segdistill.report.terminal import markdown, print_summary
    from segdistill.results.summary import summarise

    with exit_on_user_error():
        summary = summarise(load_params(), METRICS, complete=False)
        if as_markdown:
            print(markdown(summary, sort=sort, top=top, group=group))
        else:
            print_summary(summary, REPORT, sort=sort, top=top, group=group)


def track(
    follow: Annotated[bool, typer.Option("--watch", help="keep following the sweep; Ctrl-C ends it")] = False,
) -> None:
    """Bring every run that metrics/ holds into MLflow, each exactly once.

    The store is MLFLOW_TRACKING_URI, else tracking.uri of params.yaml, else mlflow.db in this folder.

    With --watch, follow running trainings too: bring in their curves and
    images every few seconds, until Ctrl-C.
    """
    from segdistill.params.read import load_params
    from segdistill.results.row import TEACHER
    from segdistill.results.stale import changed_runs
    from segdistill.tracking.mlflow import track as track_all
    from segdistill.tracking.rows import rows_on_disk
    from segdistill.tracking.store import find_store
    from segdistill.tracking.watch import watch

    with exit_on_user_error():
        params = load_params()
        store = find_store(params.tracking.uri)
        if follow:
            print(f"following the sweep in MLflow at {store.name}; Ctrl-C ends it", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                watch()
            return
        # MLflow would keep a row of metrics with settings that they are not of.
        if changed := changed_runs(params, METRICS, (TEACHER, *params.students())):
            raise UserError(changed)
        if not rows_on_disk(params, METRICS):
            raise UserError(f"{METRICS}: holds no run of params.yaml; dvc repro writes them")
    if not track_all(params, METRICS, shows_progress=True):
        raise typer.Exit(1)
    print(f"MLflow at {store.name} has every run of {METRICS}/")


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="on 127.0.0.1")] = 5000,
    opens_browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="open the table of runs, where there is a display")
    ] = True,
) -> None:
    """Serve the MLflow UI of the local store on 127.0.0.1, and follow the sweep in it. Ctrl-C ends both."""
    from segdistill.params.read import load_params
    from segdistill.tracking.mlflow import open_experiment
    from segdistill.tracking.store import find_store
    from segdistill.tracking.view import compare_path, table_path

    with exit_on_user_error():
        tracking = load_params().tracking
        store = find_store(tracking.uri)
        if store.sqlite is None:
            raise UserError(f"tracking.uri: MLflow is served elsewhere, at {store.name}")
        _check_free(port)
        experiment = open_experiment(store, tracking.experiment)
        address = f"http://127.0.0.1:{port}"
        python = [sys.executable, "-m"]
        server_command = [*python, "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        server_command += ["--backend-store-uri", store.uri, "--registry-store-uri", store.uri]
        server_command += ["--uvicorn-opts", "--log-level warning"]
        with contextlib.ExitStack() as started:
            server = started.enter_context(_child(server_command))
            _wait_until_ready(server, address)
            if tracking.live:
                started.enter_context(_child([*python, "segdistill", "track", "--watch"], stdout=subprocess.DEVNULL))
            table, curves = (address + table_path(experiment.id, charts) for charts in (False, True))
            students = [run.info.run_id for run in experiment.current() if "student" in run.data.params]
            if len(students) > 1:
                print(f"side by side:  {address}{compare_path(experiment.id, students)}")
            print(f"curves:        {curves}")
            print(f"table of runs: {table}", flush=True)
            if opens_browser and _is_seen():
                webbrowser.open(table)
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()


@contextlib.contextmanager
def _child(command: list[str], stdout: int | None = None) -> Iterator[subprocess.Popen]:
    """Run a command until the body ends, however it ends: by Ctrl-C, by SIGTERM, or by a SIGKILL of this process.

    The command gets its own session, so that Ctrl-C reaches this process alone, which then ends the command.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}  # of MLflow's own code
    process = subprocess.Popen(  # noqa: PLW1509 - this process has one thread
        command, stdout=stdout, env=environment, start_new_session=True, preexec_fn=end_with_parent
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(server: subprocess.Popen, address: str) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise UserError(f"mlflow server ended with exit code {server.returncode} before it was ready")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.2)
    raise UserError(f"mlflow server is not ready after {START_S:.0f} s")


def _is_seen() -> bool:
    """Return whether a person started this command at a terminal of a machine with a display."""
    has_display = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(has_display)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(f"--port: found {port}, which is in use on 127.0.0.1; name another") from None
