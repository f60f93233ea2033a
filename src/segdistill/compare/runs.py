"""Runs side by side, from the figures on disk: the settings that differ, what they cost and gave, and by which classes.

`tables` shows what is gathered here; `pixels` finds where on val the class maps of two runs differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from segdistill.core.errors import UserError
from segdistill.params.model import Params
from segdistill.results.row import TEACHER, Row
from segdistill.results.summary import summarise

MAX_CLASSES = 8


class Line(NamedTuple):
    """One line of a comparison: a value for each run, None where there is none.

    `form` is a format specification, empty for texts; `best` is max or min, None where neither is better.
    """

    label: str
    values: tuple[object, ...]
    form: str = ""
    best: Callable | None = None


@dataclass(frozen=True)
class Comparison:
    """The runs that were asked for, in that order, and the lines of each table."""

    runs: tuple[str, ...]
    settings: tuple[Line, ...]
    figures: tuple[Line, ...]
    classes: tuple[Line, ...]


# What is shown of a Row: its attribute, label, form, and which is better.
_FIGURES = (
    ("mean_iou", "val mIoU", ".2%", max),
    ("float32_mean_iou", "val mIoU, float32 ONNX", ".2%", max),
    ("int8_mean_iou", "val mIoU, int8 ONNX", ".2%", max),
    ("overall_acc", "pixels that are right", ".2%", max),
    ("teacher_agreement", "pixels as the teacher says", ".1%", None),
    ("onnx_float32_p50_ms", "p50 ms, float32 ONNX", ".2f", min),
    ("onnx_int8_p50_ms", "p50 ms, int8 ONNX", ".2f", min),
    ("float32_mb", "MB, float32 ONNX", ".2f", min),
    ("int8_mb", "MB, int8 ONNX", ".2f", min),
    ("parameters", "parameters", ",d", min),
)


def compare_runs(params: Params, metrics: Path, names: Sequence[str]) -> Comparison:
    """Compare runs of `params`, or the teacher, by the figures under `metrics`; other runs need not be done yet.

    Raises:
        UserError: a run that params.yaml has not got, or whose figures are not there.
    """
    known = (TEACHER, *params.runs)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"no run is named {', '.join(map(repr, unknown))}; there are {', '.join(known)}")
    compared = {name: run for name, run in params.runs.items() if name in names}
    summary = summarise(params.model_copy(update={"runs": compared}), metrics)
    rows = [summary.teacher if name == TEACHER else summary.run(name) for name in names]
    return Comparison(tuple(names), _settings(params, names), _figures(rows), _classes(rows))


def _settings(params: Params, names: Sequence[str]) -> tuple[Line, ...]:
    """What the runs do not have in common. The teacher has settings of another kind, and none is shown."""
    by_run = [{} if name == TEACHER else _flat_settings(params, name) for name in names]
    students = [settings for settings in by_run if settings]
    keys = [key for key in (students[0] if students else ()) if any(s[key] != students[0][key] for s in students)]
    return tuple(Line(key, tuple(settings.get(key) for settings in by_run)) for key in keys)


def _flat_settings(params: Params, run: str) -> dict[str, object]:
    """Every setting of a run, resolved, as params.yaml names it."""
    first = params.distill_settings(run).model_dump(mode="json")
    further = {
        f"{section}.{key}": value
        for section, settings in (("finetune", params.finetune_params(run)), ("export", params.export_params(run)))
        for key, value in settings.model_dump(mode="json").items()
    }
    return {key: first.pop(key) for key in ("student", "teacher", "alpha", "lr")} | first | further


def _figures(rows: Sequence[Row]) -> tuple[Line, ...]:
    lines = [Line(label, tuple(getattr(row, name) for row in rows), form, best) for name, label, form, best in _FIGURES]
    return tuple(line for line in lines if any(value is not None for value in line.values))


def _classes(rows: Sequence[Row]) -> tuple[Line, ...]:
    """IoU of the classes on which the runs differ most, the largest difference first."""
    lines = []
    for name in rows[0].class_iou:
        ious = tuple(row.class_iou.get(name) for row in rows)
        known = [iou for iou in ious if iou is not None]
        if len(known) > 1 and max(known) > min(known):
            lines.append((max(known) - min(known), Line(name.replace("_", " "), ious, ".2%", max)))
    lines.sort(key=lambda found: -found[0])
    return tuple(line for _, line in lines[:MAX_CLASSES])
