"""Runs side by side, from the metrics on disk: the settings that differ, the metrics, and the classes that differ most.

`tables` shows what is gathered here; `pixels` finds where on val the class maps of two runs differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from segdistill.core.errors import UserError
from segdistill.params.model import Params
from segdistill.results.row import COMPARE, MISSING, TEACHER, Row, shown_in
from segdistill.results.summary import summarise

MAX_CLASSES = 8


class Line(NamedTuple):
    """One line of a comparison: a value for each run, None where there is none, and how each is shown.

    `better` is max or min, None where neither is.
    """

    label: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    better: Callable | None = None


@dataclass(frozen=True)
class Comparison:
    """The compared runs, in the order given, and the lines of each table. `stale` runs have older settings."""

    runs: tuple[str, ...]
    settings: tuple[Line, ...]
    metrics: tuple[Line, ...]
    classes: tuple[Line, ...]
    stale: tuple[str, ...] = ()


def compare_runs(params: Params, metrics: Path, names: Sequence[str]) -> Comparison:
    """Compare runs of `params`, or the teacher, by the metrics under `metrics`; other runs need not be done yet.

    Raises:
        UserError: params.yaml has no such run, or its metrics are missing.
    """
    known = (TEACHER, *params.students())
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"no run is named {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    compared = {name: params.student(name) for name in params.students() if name in names}
    summary = summarise(params.model_copy(update={"runs": compared, "seeds": ()}), metrics)
    by_name = {row.run: row for row in summary.rows}
    rows = [by_name[name] for name in names]
    measured = []
    for one in shown_in(COMPARE, rows):
        values = tuple(getattr(row, one.name) for row in rows)
        if any(value is not None for value in values):
            measured.append(Line(one.label, values, tuple(map(one.text, values)), one.better))
    stale = tuple(row.run for row in rows if row.is_stale)
    return Comparison(tuple(names), _settings(params, rows), tuple(measured), _classes(rows), stale)


def _settings(params: Params, rows: Sequence[Row]) -> tuple[Line, ...]:
    """Return what the runs do not have in common. The teacher has settings of another kind, and none is shown."""
    by_run = [{} if row.role == TEACHER else _flat_settings(params, row) for row in rows]
    students = [settings for settings in by_run if settings]
    keys = [key for key in (students[0] if students else ()) if any(s[key] != students[0][key] for s in students)]
    found = [(key, tuple(settings.get(key) for settings in by_run)) for key in keys]
    return tuple(
        Line(key, values, tuple(MISSING if value is None else str(value) for value in values)) for key, values in found
    )


def _flat_settings(params: Params, row: Row) -> dict[str, object]:
    """Return every setting that the metrics of a run were computed with, resolved, as params.yaml names it."""
    first = params.distill_settings(row.run).model_dump(mode="json")
    further = {
        f"{section}.{key}": value
        for section, settings in (
            ("finetune", params.finetune_params(row.run)),
            ("export", params.export_params(row.run)),
        )
        for key, value in settings.model_dump(mode="json").items()
    }
    for key, value in row.computed_with.items():
        if key == "finetune_steps":
            further["finetune.steps"] = value
        elif key in first:
            first[key] = value
    return {key: first.pop(key) for key in ("student", "teacher", "alpha", "lr")} | first | further


def _classes(rows: Sequence[Row]) -> tuple[Line, ...]:
    """Return IoU of the classes on which the runs differ most, the largest difference first."""
    lines = []
    for name in rows[0].class_iou:
        ious = tuple(row.class_iou.get(name) for row in rows)
        known = [iou for iou in ious if iou is not None]
        if len(known) > 1 and max(known) > min(known):
            texts = tuple(MISSING if iou is None else f"{iou:.2%}" for iou in ious)
            lines.append((max(known) - min(known), Line(name.replace("_", " "), ious, texts, max)))
    lines.sort(key=lambda found: -found[0])
    return tuple(line for _, line in lines[:MAX_CLASSES])
