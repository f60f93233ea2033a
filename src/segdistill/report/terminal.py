"""The summary of a sweep in the terminal."""

from __future__ import annotations

from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segdistill.report.answer import answer
from segdistill.results.row import CONTROL, TEACHER, Row
from segdistill.results.summary import Summary

COLUMNS = ("run", "alpha", "lr", "mIoU", "vs control", "agrees", "int8 mIoU", "int8 MB", "ms float32", "ms int8")
# Where there is no terminal (CI, a log file) rich assumes 80 columns and cuts names.
MIN_WIDTH = 110


def print_summary(summary: Summary, report: Path = Path("reports/index.html"), console: Console | None = None) -> None:
    """Print the models as a table, the answer, and where to read on."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "run" else "right")
    for row in summary.rows:
        picked = summary.champion is not None and row.role != TEACHER and row.run == summary.champion.run
        table.add_row(*map(Text, _cells(row)), style="bold" if picked else "dim" if row.role == TEACHER else "")
    found = answer(summary)
    console.print()
    console.print(table)
    console.print()
    console.print(Text(found.headline, style="bold"))
    for reason in found.reasons:
        console.print(Text(f"  {reason}"), soft_wrap=True)
    console.print()
    console.print(Text(f"report  {report}"), soft_wrap=True)
    console.print(Text("MLflow  make ui"))


def markdown(summary: Summary) -> str:
    """The same table and answer as Markdown, for a page or a pull request; names cannot become HTML there."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" + "|---:" * (len(COLUMNS) - 1) + "|"]
    lines += [
        "| " + " | ".join(escape(cell, quote=False).replace("|", "\\|") for cell in _cells(row)) + " |"
        for row in summary.rows
    ]
    found = answer(summary)
    return "\n".join(
        [*lines, "", f"**{escape(found.headline, quote=False)}.** {escape(' '.join(found.reasons), quote=False)}"]
    )


def _cells(row: Row) -> list[str]:
    gain = None if row.gain_over_vanilla is None else 100 * row.gain_over_vanilla
    return [
        row.run,
        _form(row.alpha, "g"),
        _form(row.lr, "g"),
        _form(row.mean_iou, ".2%"),
        "control" if row.role == CONTROL and row.control == row.run else _form(gain, "+.2f"),
        _form(row.teacher_agreement, ".1%"),
        _form(row.int8_mean_iou, ".2%"),
        _form(row.int8_mb, ".2f"),
        _form(row.onnx_float32_p50_ms, ".2f"),
        _form(row.onnx_int8_p50_ms, ".2f"),
    ]


def _form(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
