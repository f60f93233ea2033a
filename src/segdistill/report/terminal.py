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
from segdistill.results.row import CONTROL, GAIN, METRICS, MISSING, TEACHER, TERMINAL, UNSEEN_GAIN, shown_in
from segdistill.results.summary import Summary

# Where there is no terminal (CI, a log file) rich assumes 80 columns, and would cut the names of runs.
MIN_WIDTH, MAX_WIDTH = 110, 1000
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
    heads, lines = table(summary, sort, top, group)
    shown = Table(box=None, pad_edge=False, header_style="dim")
    for number, head in enumerate(heads):
        shown.add_column(head, justify="right" if number else "left", no_wrap=not number)
    for cells, style in lines:
        shown.add_row(*map(Text, cells), style=style)
    if not console.is_terminal:
        needed = console.measure(shown, options=console.options.update(max_width=MAX_WIDTH)).maximum
        console.width = max(console.width, MIN_WIDTH, needed)
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
    by_name = (
        dict.fromkeys(("mean_iou", GAIN, UNSEEN_GAIN), max)
        if group
        else {one.name: one.better or max for one in METRICS}
    )
    if sort is not None and sort not in by_name:
        raise UserError(f"--sort: found {sort!r}; allowed are {', '.join(by_name)}")

    def rank(value: Any) -> tuple:
        sign = -1 if sort is not None and by_name[sort] is max else 1
        return (value is None, value if isinstance(value, str) else sign * (value or 0))

    lines: Lines = []
    if group:
        settings, has_unseen = list(summary.settings), any(one.unseen_gain for one in summary.settings)
        if sort == "mean_iou":
            settings.sort(key=lambda one: rank(one.mean_iou))
        elif sort is not None:
            found = {one.name: one.unseen_gain if sort == UNSEEN_GAIN else one.gain for one in settings}
            settings.sort(key=lambda one: rank(gain.mean if (gain := found[one.name]) else None))
        for one in settings[:top]:
            mean = MISSING if one.mean_iou is None else f"{one.mean_iou:.2%}"
            spread = MISSING if one.spread is None else f"{100 * one.spread:.2f}"
            is_alike = one.claim is None or not one.claim.other_recipe
            name = one.name if is_alike else f"{one.name} (control of another recipe)"
            cells = [name, str(one.seeds), mean, spread]
            for gain in (one.gain, one.unseen_gain) if has_unseen else (one.gain,):
                cells.append(signed(gain.mean) if gain else "control" if one.role == CONTROL else MISSING)
                if gain is None or gain.low is None or gain.high is None:
                    cells.append(MISSING)
                else:
                    cells.append(f"{signed(gain.low)} to {signed(gain.high)}")
            lines.append((cells, ""))
        heads = ["setting", "seeds", "mIoU", "spread", "Δ control", "95% interval"]
        return heads + ["Δ unseen", "95% interval"] * has_unseen, lines

    rows = list(summary.rows)
    if sort is not None:
        rows.sort(key=lambda row: rank(getattr(row, sort)))
    columns = shown_in(TERMINAL, rows)
    for row in rows[:top]:
        texts = {column.name: column.text(getattr(row, column.name)) for column in columns}
        if row.run == row.control:
            # Its difference to itself is no result.
            texts |= dict.fromkeys({GAIN, UNSEEN_GAIN} & texts.keys(), "control")
        is_champion = summary.champion is not None and row.run == summary.champion.run
        style = "bold" if is_champion else "dim" if row.role == TEACHER or row.is_stale else ""
        lines.append(([f"{row.run} (stale)" if row.is_stale else row.run, *texts.values()], style))
    return ["run", *(column.label for column in columns)], lines
