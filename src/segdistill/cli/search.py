"""The command that searches values of a run's keys: `search`."""

from __future__ import annotations

from typing import Annotated

import typer

from segdistill.core.errors import UserError, exit_on_user_error

EXAMPLES = """[bold]What to vary[/], any key of a run:

  alpha=0.1:0.9            a number from 0.1 to 0.9
  lr=0.001:0.1:log         the same, drawn evenly by its logarithm
  temperature=1,2,4        one of these; a single value is for all trials
  finetune.lr=0.0001:0.01  a key of finetune

[bold]Examples[/]

  segdistill search -n 20 alpha=0.1:0.9 lr=0.001:0.1:log temperature=1,2,4
  segdistill search -n 50 -j 2 label_weight=0.5:2 distill_weight=0.1:2"""


def search(
    space: Annotated[list[str], typer.Argument(metavar="KEY=VALUES", help="what to vary; see below")],
    trials: Annotated[int, typer.Option("--trials", "-n", metavar="N", min=1, help="trials of this search in all")],
    base: Annotated[
        str | None, typer.Option(metavar="RUN", help="the run that trials differ from; else the first with a teacher")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", metavar="N", min=1, help="trials at a time")] = 1,
    storage: Annotated[
        str,
        typer.Option(metavar="URL", envvar="SEGDISTILL_SEARCH_STORAGE", help="Optuna's storage: SQLite or PostgreSQL"),
    ] = "sqlite:///search.db",
    name: Annotated[str, typer.Option(metavar="NAME", help="of the search; its runs are NAME-000, NAME-001, ...")] = (
        "search"
    ),
    prune: Annotated[
        bool, typer.Option(help="skip finetuning where the distilled student is below the median on the holdout")
    ] = True,
) -> None:
    """Search values of a run's keys with Optuna: each trial is a run of params.yaml, scored by its mIoU on the holdout.

    Several of these commands may share one storage. Ctrl-C stops the trials, and the same command continues.
    """
    with exit_on_user_error():
        try:
            from segdistill.search.run import Options
            from segdistill.search.run import search as run_trials
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise UserError("segdistill search needs Optuna: pip install 'optuna>=5'") from None
        run_trials(space, Options(trials, base, jobs, storage, name, prune))
