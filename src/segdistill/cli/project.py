"""The commands about the sweep in the current folder: `show`, `track` and `ui`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from segdistill.core.errors import UserError, exit_on_user_error

METRICS, REPORT = Path("metrics"), Path("reports/index.html")


def show(as_markdown: Annotated[bool, typer.Option("--markdown", help="as Markdown, for a page")] = False) -> None:
    """Print every run of the sweep as a table, which student to ship and why, and where to read on."""
    from segdistill.params.read import load_params
    from segdistill.report.terminal import markdown, print_summary
    from segdistill.results.stale import changed_runs
    from segdistill.results.summary import summarise

    with exit_on_user_error():
        params = load_params()
        summary = summarise(params, METRICS)
    if as_markdown:
        print(markdown(summary))
    else:
        print_summary(summary, REPORT)
    if changed := changed_runs(params, METRICS, params.runs):
        print(f"warning: {changed}", file=sys.stderr)


def track() -> None:
    """Bring every run that metrics/ holds into MLflow, each exactly once.

    The store is MLFLOW_TRACKING_URI, else tracking.uri of params.yaml, else mlflow.db in this folder.
    """
    from segdistill.params.read import load_params
    from segdistill.results.stale import changed_runs
    from segdistill.tracking import track as bring_in
    from segdistill.tracking.store import find_store

    with exit_on_user_error():
        params = load_params()
        # MLflow would keep a row of figures with settings that they are not of.
        if changed := changed_runs(params, METRICS, params.runs):
            raise UserError(changed)
    if not bring_in(params, METRICS, shown=True):
        raise typer.Exit(1)
    print(f"what {METRICS}/ holds is in MLflow: {find_store(params.tracking.uri).name}")


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="on 127.0.0.1")] = 5000) -> None:
    """Serve the MLflow UI of the local store on 127.0.0.1, and print the address. Ctrl-C ends it."""
    from segdistill.params.read import load_params
    from segdistill.tracking.store import find_store, quiet_and_patient_for

    # Jobs are for features that this store has no use for; without them the server takes half the memory.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    quiet_and_patient_for()
    from segdistill.tracking import Experiment
    from segdistill.tracking.view import compare_path, view_path

    with exit_on_user_error():
        tracking = load_params().tracking
        store = find_store(tracking.uri)
        if store.sqlite is None:
            raise UserError(f"tracking.uri: MLflow is served elsewhere, at {store.name}")
        if not store.sqlite.exists():
            raise UserError(f"{store.sqlite.name}: no runs are tracked yet; run: make repro")
        _check_free(port)
    address = f"http://127.0.0.1:{port}"
    experiment = Experiment(store, tracking.experiment)
    print(f"the sweep as a table: {address}{view_path(experiment.id)}", flush=True)
    students = [row.info.run_id for row in experiment.current()[0] if "alpha" in row.data.params]
    if len(students) > 1:
        print(f"its runs compared:    {address}{compare_path(experiment.id, students)}", flush=True)
    server = ["-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", "127.0.0.1", "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *server, "--port", str(port)])


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(f"--port: found {port}, which is in use on 127.0.0.1; name another") from None
