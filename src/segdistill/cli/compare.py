"""`segdistill compare`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from segdistill.core.errors import UserError, exit_on_user_error
from segdistill.core.log import logger
from segdistill.paths import METRICS, PARAMS, STUDENT_ONNX, run_models

EXAMPLES = """[bold]Examples[/]

segdistill compare vanilla a03-lr01
segdistill compare teacher vanilla a03-lr01 --markdown
segdistill compare vanilla a03-lr01 --pixels --out differences"""


class Precision(StrEnum):
    """The ONNX files of a run."""

    FLOAT32 = "float32"
    INT8 = "int8"


def _run_names(context: typer.Context, incomplete: str) -> list[str]:
    """Return the runs of params.yaml that begin with `incomplete` and are not named yet, for the shell."""
    import yaml

    try:
        runs = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["runs"]
        named = context.params.get("runs") or ()
        return [run for run in ("teacher", *runs) if run.startswith(incomplete) and run not in named]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
        return []  # a shell has no use for messages


_ON_VAL = "Pixels of val"
_Runs = Annotated[
    list[str], typer.Argument(metavar="RUN", help="runs of params.yaml, or teacher", autocompletion=_run_names)
]
_Markdown = Annotated[bool, typer.Option("--markdown", help="as Markdown, for a page")]
_Pixels = Annotated[
    bool, typer.Option("--pixels", help="predict val by the ONNX files and compare pixels", rich_help_panel=_ON_VAL)
]
_Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="new folder for images of what differs", rich_help_panel=_ON_VAL),
]
_Precision = Annotated[Precision, typer.Option("--precision", help="which ONNX files", rich_help_panel=_ON_VAL)]
_Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=0, help="CPU threads; 0 takes all cores", rich_help_panel=_ON_VAL)
]


def compare(
    runs: _Runs,
    as_markdown: _Markdown = False,
    pixels: _Pixels = False,
    out: _Out = None,
    precision: _Precision = Precision.FLOAT32,
    threads: _Threads = 0,
) -> None:
    """Show runs side by side: the settings that differ, accuracy, latency, size, and classes.

    Where two runs differ, the images of --out are blue where the first is
    right, orange where the second is, pink where neither is, and light grey
    where there is no truth.
    """
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise typer.BadParameter(f"found {', '.join(runs)}; at least two different runs are compared")
    from segdistill.params.read import load_params

    with exit_on_user_error():
        from segdistill.compare.runs import compare_runs
        from segdistill.compare.tables import markdown, print_comparison
        from segdistill.results.stale import changed_runs

        params = load_params()
        comparison = compare_runs(params, METRICS, runs)
        differences = _differences(runs, precision, out, threads) if pixels or out else []
    if as_markdown:
        print(markdown(comparison, differences))
    else:
        print_comparison(comparison, differences)
    if changed := changed_runs(params, METRICS, runs):
        logger.warning(changed)


def _differences(runs: list[str], precision: Precision, out: Path | None, threads: int) -> list:
    if "teacher" in runs:
        raise UserError("--pixels: found teacher, which is not exported to ONNX; it compares students")
    if out is not None and out.exists():
        raise UserError(f"{out}: is there already; --out takes a new folder")
    from segdistill.compare.pixels import ClassesOf, pixel_differences
    from segdistill.core.provenance import usable_cores
    from segdistill.data.prepared import PreparedData
    from segdistill.export.onnx_file import OnnxPredictor

    files = {run: run_models(run) / STUDENT_ONNX[precision] for run in runs}
    models: dict[str, ClassesOf] = {
        run: OnnxPredictor(path, threads or usable_cores()).classes for run, path in files.items()
    }
    return pixel_differences(models, PreparedData.open().val, out)
