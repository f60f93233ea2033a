"""Rows as a Markdown table, and its place in a document."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rows import Row
from segdistill.core.errors import UserError
from segdistill.core.files import write_text


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown; a missed target is marked."""
    lines = ["| # | what | measured | 10th to 90th percentile | target |", "|---|---|---:|---|---|"]
    for row in rows:
        unit = "" if row.unit == "ratio" else f" {row.unit}"
        spread = "" if row.spread is None else f"{row.spread[0]:g} to {row.spread[1]:g}"
        target = row.target or ""
        if row.met is False:
            target += " (missed)"
        note = f"; {row.note}" if row.note else ""
        lines.append(f"| {row.row} | {row.what}{note} | {row.value:g}{unit} | {spread} | {target} |")
    return "\n".join(lines)


def write_table(document: Path, results: dict) -> None:
    """Put the table of `results` between its marks in `document`."""
    rows = [Row(**{key: row[key] for key in Row._fields}) for row in results["rows"]]
    conditions = results["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    processor = ", ".join([conditions["processor"], *conditions["instruction_sets"]])
    below = f"{processor}; {conditions['threads']} cores; {versions}; {conditions['date']}."
    put_between(document, "benchmarks", f"{table(rows)}\n\n{below}")


def put_between(document: Path, name: str, text: str) -> None:
    """Replace the text of `document` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`.

    Raises:
        UserError: the document does not have each mark once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    page = document.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise UserError(f"{document}: needs one {begin} and one {end}, to write the table between")
    head, tail = page.split(begin)[0], page.split(end)[1]
    write_text(document, f"{head}{begin}\n{text}\n{end}{tail}")
