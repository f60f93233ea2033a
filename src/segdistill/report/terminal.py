"""The summary of a sweep in the terminal and as Markdown."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segdistill.core.errors import UserError
from segdistill.report.words import answer, signed
from segdistill.results.row import CONTROL, METRICS, MISSING, TEACHER, TERMINAL, shown_in
from segdistill.results.summary import Summary

# Where there is no terminal (CI, a log file) rich assumes 80 columns and cuts names.
MIN_WIDTH = 110
Lines = list[tuple[list[str], str]]  # the cells of a line, and its style


def print_summary(
    summary: Summary,
    report: Path = Path("reports/index.html"),
    console: Console | None = None,
    *,
    sort: str | None = None,
    top: int | None = None,
    group: bool = False,
) -> None:
    """Print the models as a table, where the report is, and last the answer; see `table` for the options."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, MIN_WIDTH)
    heads, lines = table(summary, sort, top, group)
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for number, head in enumerate(heads):
        shown.add_column(head, justify="right" if number else "left")
    for cells, style in lines:
        shown.add_row(*map(Text, cells), style=style)
    found = answer(summary)
    for part in ("", shown, "", Text(f"report  {report}"), Text("MLflow  make ui"), ""):
        console.print(part, soft_wrap=isinstance(part, Text))
    console.print(Text(found.headline, style="bold"))
    for reason in found.reasons:
        console.print(Text(f"  {reason}"), soft_wrap=True)


def markdown(summary: Summary, *, sort: str | None = None, top: int | None = None, group: bool = False) -> str:
    """Return the same table and answer as Markdown, for a page or a pull request; names cannot become HTML there."""
    heads, lines = table(summary, sort, top, group)
    rows = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for cells, _ in lines:
        rows.append("| " + " | ".join(escape(cell, quote=False).replace("|", "\\|") for cell in cells) + " |")
    found = answer(summary)
    headline, reasons = (escape(text, quote=False) for text in (found.headline, " ".join(found.reasons)))
    return "\n".join([*rows, "", f"**{headline}.** {reasons}"])


def table(summary: Summary, sort: str | None, top: int | None, group: bool) -> tuple[list[str], Lines]:
    """Return the headings and lines of the table: a line per model, or with `group` per setting over its seeds.

    `sort` is the name of a metric, the best first; `top` is the most lines to keep.

    Raises:
        UserError: there is no such metric, or it does not order settings.
    """
    by_name = {"mean_iou": max, "gain_over_vanilla": max} if group else {one.name: one.better or max for one in METRICS}
    if sort is not None and sort not in by_name:
        raise UserError(f"--sort: found {sort!r}; allowed are {', '.join(by_name)}")

    def rank(value: Any) -> tuple:
        sign = -1 if sort is not None and by_name[sort] is max else 1
        return (value is None, value if isinstance(value, str) else sign * (value or 0))

    lines: Lines = []
    if group:
        settings = list(summary.settings)
        if sort == "mean_iou":
            settings.sort(key=lambda one: rank(one.mean_iou))
        elif sort is not None:
            settings.sort(key=lambda one: rank(one.gain and one.gain.mean))
        for one in settings[:top]:
            mean = MISSING if one.mean_iou is None else f"{one.mean_iou:.2%}"
            spread = MISSING if one.spread is None else f"{100 * one.spread:.2f}"
            gain, interval = "control" if one.role == CONTROL else MISSING, MISSING
            if one.gain is not None:
                gain = signed(one.gain.mean)
                if one.gain.low is not None and one.gain.high is not None:
                    interval = f"{signed(one.gain.low)} to {signed(one.gain.high)}"
            lines.append(([one.name, str(one.seeds), mean, spread, gain, interval], ""))
        return ["setting", "seeds", "mIoU", "spread", "Δ control", "95% interval"], lines

    rows = list(summary.rows)
    if sort is not None:
        rows.sort(key=lambda row: rank(getattr(row, sort)))
    columns = shown_in(TERMINAL, rows)
    for row in rows[:top]:
        texts = {column.name: column.text(getattr(row, column.name)) for column in columns}
        if row.run == row.control:
            texts["gain_over_vanilla"] = "control"  # its difference to itself is no result
        is_champion = summary.champion is not None and row.run == summary.champion.run
        style = "bold" if is_champion else "dim" if row.role == TEACHER or row.is_stale else ""
        lines.append(([f"{row.run} (stale)" if row.is_stale else row.run, *texts.values()], style))
    return ["run", *(column.label for column in columns)], lines
