"""The command line: one file per group of commands. It imports nothing heavy at the top, to be quick to start."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from segdistill.cli import compare, predict, project, search, sweep, synthesize
from segdistill.core.streams import print_anywhere

HELP = (
    "Distil one heavy segmentation teacher into light students. "
    "dvc repro runs the sweep; these commands show and use its results."
)
EPILOG = """[bold]Exit codes[/]: 0 done, 1 bad input or a failure, with one message, 2 wrong usage.

[bold]Completion[/] in your shell: segdistill --install-completion"""


class _App(typer.Typer):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run the command of sys.argv, on a terminal of any encoding."""
        print_anywhere()
        return super().__call__(*arguments, **options)


app = _App(
    no_args_is_help=True,
    help=HELP,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # a bug of segdistill shows Python's own traceback
)

_SWEEP, _FILES = "The sweep in this folder", "Images"
app.command(rich_help_panel=_SWEEP)(sweep.sweep)
app.command(rich_help_panel=_SWEEP)(sweep.work)
app.command(rich_help_panel=_SWEEP, epilog=search.EXAMPLES)(search.search)
app.command(rich_help_panel=_SWEEP)(project.show)
app.command(rich_help_panel=_SWEEP, epilog=compare.EXAMPLES)(compare.compare)
app.command(rich_help_panel=_SWEEP)(project.track)
app.command(rich_help_panel=_SWEEP)(project.ui)
app.command(rich_help_panel=_FILES, epilog=predict.EXAMPLES)(predict.predict)
app.command(rich_help_panel=_FILES, epilog=synthesize.EXAMPLES)(synthesize.synthesize)


def _version(is_given: bool) -> None:
    if is_given:
        from importlib.metadata import version

        print(version("segdistill"))
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Define the options that come before a command."""
