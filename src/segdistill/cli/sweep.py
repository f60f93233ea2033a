"""The commands that run the sweep of the current folder, several runs at a time, here or elsewhere: `sweep`, `work`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from segdistill.core.errors import exit_on_user_error


def sweep(
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", metavar="N", min=1, help="runs at a time here")] = None,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="run them on the Ray cluster of this head")
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", metavar="N", min=1, help="with --address: CPUs of a run; else shared out")
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=0, help="with --address: GPUs of a run; else one, if any")
    ] = None,
) -> None:
    """Do what dvc repro does, several runs at a time: shared stages, the runs that changed, benchmark and report.

    With --jobs N, cores and GPUs of this machine are shared out among N runs.
    With --address, a Ray cluster runs them; a DVC remote carries the artifacts.

    The output of a run goes to scratch/sweep/RUN.log. A run that fails does not stop the others.
    Ctrl-C stops all of them, and the same command continues.
    """
    from segdistill.params.read import load_params

    if (jobs is None) == (address is None):
        raise typer.BadParameter("give either --jobs N, for this machine, or --address HOST:PORT, for a Ray cluster")
    if address is None and (cpus, gpus) != (None, None):
        raise typer.BadParameter("--cpus and --gpus go with --address; --jobs shares out all that this machine has")
    with exit_on_user_error():
        if jobs is not None:
            from segdistill.sweep.local import sweep as sweep_here

            sweep_here(load_params(), jobs)
        elif address is not None:
            from segdistill.sweep.cluster import sweep as sweep_on_cluster

            sweep_on_cluster(load_params(), address, cpus, gpus)


def work(run: Annotated[str, typer.Argument(metavar="RUN", help="a name under runs in params.yaml")]) -> None:
    """Do one run of a sweep in a clone on another machine, and print its entries of dvc.lock as JSON.

    The clone needs params.yaml and dvc.lock of the machine where the shared stages have run, and its DVC remote.
    This pulls what the run reads, runs its stages and pushes what they wrote; dvc repro --pull at home restores it.
    """
    from segdistill.params.read import load_params
    from segdistill.sweep.processes import end_with_parent
    from segdistill.sweep.worker import work as do_run

    end_with_parent()
    with exit_on_user_error():
        print(json.dumps(do_run(load_params(), run), indent=2))
