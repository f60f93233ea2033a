"""The command line: what is done beside `dvc repro`, one file per group. Nothing heavy is imported up here."""

from __future__ import annotations

from typing import Annotated

import typer

from segdistill.cli import compare, predict, project, synthesize

HELP = (
    "Distil one heavy segmentation teacher into light students. "
    "dvc repro runs the sweep; these commands show and use what it made."
)
EPILOG = """[bold]Exit codes[/]: 0 done, 1 bad input or a failure told in one message, 2 wrong usage.

[bold]Completion[/] in your shell: segdistill --install-completion"""

app = typer.Typer(
    no_args_is_help=True,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # a fault of ours traces back as Python's own do
)

_SWEEP, _FILES = "The sweep in this folder", "Pictures"
app.command(rich_help_panel=_SWEEP)(project.show)
app.command(rich_help_panel=_SWEEP, epilog=compare.EXAMPLES)(compare.compare)
app.command(rich_help_panel=_SWEEP)(project.track)
app.command(rich_help_panel=_SWEEP)(project.ui)
app.command(rich_help_panel=_FILES, epilog=predict.EXAMPLES)(predict.predict)
app.command(rich_help_panel=_FILES, epilog=synthesize.EXAMPLES)(synthesize.synthesize)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(version("segdistill"))
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Everything is done by the commands."""
