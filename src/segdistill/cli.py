"""The command line: what is done beside `dvc repro`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from segdistill.errors import InputError, told_plainly
from segdistill.tracking.store import find_store, quiet_and_patient_for

app = typer.Typer(no_args_is_help=True, help="Distil one heavy segmentation teacher into light students.")

METRICS, REPORT = Path("metrics"), Path("reports/index.html")


@app.command()
def show(as_markdown: Annotated[bool, typer.Option("--markdown", help="as Markdown, for a page")] = False) -> None:
    """Print the summary table of the last report, the answer, and where to read on."""
    from segdistill.params_file import load_params
    from segdistill.report.terminal import markdown, print_summary
    from segdistill.summary import summarise

    with told_plainly():
        summary = summarise(load_params(), METRICS)
    if as_markdown:
        print(markdown(summary))
    else:
        print_summary(summary, REPORT)


@app.command()
def track() -> None:
    """Bring every run that metrics/ holds into MLflow, exactly once. MLFLOW_TRACKING_URI is honoured."""
    from segdistill.params_file import load_params
    from segdistill.tracking import track as bring_in

    with told_plainly():
        params = load_params()
    if not bring_in(params, METRICS):
        raise typer.Exit(1)


@app.command()
def ui(port: Annotated[int, typer.Option(help="on 127.0.0.1")] = 5000) -> None:
    """Open the MLflow UI of the local store on 127.0.0.1. Ctrl-C ends it."""
    from segdistill.params_file import load_params

    # Jobs are for features that this store has no use for; without them the server takes half the memory.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    quiet_and_patient_for()
    from segdistill.tracking import Experiment
    from segdistill.tracking.view import view_path

    with told_plainly():
        tracking = load_params().tracking
        store = find_store(tracking.uri)
        if store.sqlite is None:
            raise InputError(f"tracking.uri: MLflow is served elsewhere, at {store.name}")
        if not store.sqlite.exists():
            raise InputError(f"{store.sqlite.name}: no runs are tracked yet; run: make repro")
    address = f"http://127.0.0.1:{port}"
    print(f"the sweep as a table: {address}{view_path(Experiment(store, tracking.experiment).id)}", flush=True)
    server = ["-m", "mlflow", "server", "--backend-store-uri", store.uri, "--host", "127.0.0.1", "--workers", "1"]
    os.execv(sys.executable, [sys.executable, *server, "--port", str(port)])


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="folder to write; must be new or empty")],
    train_frames: Annotated[int, typer.Option(min=1)] = 24,
    val_frames: Annotated[int, typer.Option(min=1)] = 12,
    height_px: Annotated[int, typer.Option(min=32)] = 128,
    width_px: Annotated[int, typer.Option(min=32)] = 256,
    seed: int = 0,
) -> None:
    """Write a built-in city as PNG files in the layout of Cityscapes."""
    from segdistill.files import atomic_directory
    from segdistill.provenance import usable_cores
    from segdistill.synthetic import write_city

    with told_plainly():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: is there already; allowed is a new or an empty folder")
        with atomic_directory(out) as folder:
            write_city(
                folder,
                seed=seed,
                train_frames=train_frames,
                val_frames=val_frames,
                size_px=(height_px, width_px),
                workers=usable_cores(),
            )
    print(f"{out}: {train_frames} train and {val_frames} val frames of {height_px}x{width_px} pixels")


if __name__ == "__main__":
    app()
