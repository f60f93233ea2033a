"""A comparison as tables, in the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from rich.console import Console
from rich.table import Table
from rich.text import Text

from segdistill.compare.pixels import Difference
from segdistill.compare.runs import Comparison, Line

_SECTIONS = {
    "settings": "Settings that differ",
    "metrics": "Metrics",
    "classes": "Class IoU on val, where they differ most",
}
_PIXELS = "Pixels of val on which class maps differ"
_PIXEL_COLUMNS = ("runs", "differ", "first right", "second right", "neither", "most on")


def print_comparison(comparison: Comparison, differences: Sequence[Difference] = (), console: Console | None = None):
    """Print the tables; the best of each line in bold."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, 40 + 16 * len(comparison.runs), 110)  # rich would assume 80 and cut
    for title, lines in _sections(comparison):
        table = _table(["", *_heads(comparison)])
        for line in lines:
            texts, best = line.texts, _best(line)
            cells = [Text(text, style="bold" if place in best else "") for place, text in enumerate(texts)]
            table.add_row(Text(line.label), *cells)
        _print_titled(console, title, table)
    if differences:
        table = _table(_PIXEL_COLUMNS)
        for difference in differences:
            table.add_row(*map(Text, _pixel_cells(difference, "\n")))
        _print_titled(console, _PIXELS, table)


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def _print_titled(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)


def markdown(comparison: Comparison, differences: Sequence[Difference] = ()) -> str:
    """Return the same as Markdown, for a page or a pull request; names cannot become HTML there."""
    pieces = []
    for title, lines in _sections(comparison):
        rows = []
        for line in lines:
            best = _best(line)
            texts = [f"**{text}**" if place in best else text for place, text in enumerate(line.texts)]
            rows.append([line.label, *texts])
        pieces.append(f"**{title}**\n\n{_markdown_table(['', *_heads(comparison)], rows)}")
    if differences:
        rows = [_pixel_cells(difference, ", ") for difference in differences]
        pieces.append(f"**{_PIXELS}**\n\n{_markdown_table(_PIXEL_COLUMNS, rows)}")
    return "\n\n".join(pieces)


def _heads(comparison: Comparison) -> list[str]:
    return [f"{run} (stale)" if run in comparison.stale else run for run in comparison.runs]


def _sections(comparison: Comparison) -> Iterator[tuple[str, Sequence[Line]]]:
    for name, title in _SECTIONS.items():
        if lines := getattr(comparison, name):
            yield title, lines


def _best(line: Line) -> set[int]:
    """Return the places of the best values; none where all are equal."""
    known = [value for value in line.values if value is not None]
    if line.better is None or len(set(known)) < 2:
        return set()
    return {place for place, value in enumerate(line.values) if value == line.better(known)}


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    cells = ([escape(cell, quote=False).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def _pixel_cells(difference: Difference, between_frames: str) -> list[str]:
    shares = [difference.differing, difference.first_right, difference.second_right, difference.neither_right]
    return [
        f"{difference.first}, {difference.second}",
        *(f"{share:.2%}" for share in shares),
        between_frames.join(f"{name} {share:.1%}" for name, share in difference.frames),
    ]
