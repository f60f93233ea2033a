"""The commands that run the sweep of the current folder, several runs at a time, here or elsewhere: `sweep`, `work`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from segdistill.core.errors import exit_on_user_error


def sweep(
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="runs at a time on this machine")],
) -> None:
    """Do what dvc repro does, N runs at a time: shared stages, the runs that changed, benchmark and report.

    Cores and GPUs are shared out among the N. The output of a run goes to scratch/sweep/RUN.log.
    A run that fails does not stop the others. Ctrl-C stops all of them, and the same command continues.
    """
    from segdistill.params.read import load_params
    from segdistill.sweep.local import sweep as sweep_here

    with exit_on_user_error():
        sweep_here(load_params(), jobs)


def work(run: Annotated[str, typer.Argument(metavar="RUN", help="a name under runs in params.yaml")]) -> None:
    """Do one run of a sweep in a clone on another machine, and print its entries of dvc.lock as JSON.

    The clone needs params.yaml and dvc.lock of the machine where the shared stages have run, and its DVC remote.
    This pulls what the run reads, runs its stages and pushes what they wrote; dvc repro --pull at home restores it.
    """
    from segdistill.params.read import load_params
    from segdistill.sweep.worker import work as do_run

    with exit_on_user_error():
        print(json.dumps(do_run(load_params(), run), indent=2))
