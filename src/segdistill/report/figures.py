"""The charts of the report as plotly.js takes them: plain data, coloured by the page to suit its theme.

plotly.js reads a little HTML in its texts, so every name is escaped here.
"""

from __future__ import annotations

import csv
import math
from html import escape
from pathlib import Path

from segdistill.base.errors import InputError
from segdistill.summary import Summary
from segdistill.summary.champion import ModelFile, pareto_front
from segdistill.summary.row import CONTROL, TEACHER

# Told apart on white and on near-black alike; greys are kept for the teacher, the controls and the front.
COLORS = ("#3f7fd6", "#dd7a2b", "#2b9a72", "#c74f86", "#8764d0", "#ad8d17", "#24a0b5", "#cf4f3f")
TEACHER_COLOR, FRONT_COLOR = "#8a8f98", "#9aa0aa"
CONTROL_COLORS = ("#6b7280", "#a08c7d")
DASHES = ("solid", "dash", "dot", "dashdot")
CURVES = (("loss", "Loss"), ("label_loss", "Label loss"), ("holdout_mean_iou", "Holdout mIoU, %"))
MOST_POINTS = 400  # per run and curve: more cannot be seen and make the page slow


def line_styles(summary: Summary) -> list[dict]:
    """Colour and dash of each run, in the order of `summary.runs`; the same in all charts."""
    styles, students, controls = [], 0, 0
    for row in summary.runs:
        if row.role == CONTROL:
            color, dash = CONTROL_COLORS[controls % len(CONTROL_COLORS)], DASHES[controls // 2 % len(DASHES)]
            controls += 1
        else:
            color, dash = COLORS[students % len(COLORS)], DASHES[students // len(COLORS) % len(DASHES)]
            students += 1
        styles.append({"color": color, "dash": dash})
    return styles


def tradeoff_figure(summary: Summary) -> dict:
    """Accuracy against latency of the files, with the Pareto front; those without a score or a time are left out."""
    colors = dict(zip((row.run for row in summary.runs), line_styles(summary), strict=True))
    shown = [file for file in summary.files if file.p50_ms is not None and file.mean_iou is not None]
    traces = [_front(shown)] if shown else []
    for form, symbol in (("teacher", "star"), ("float32", "circle"), ("int8", "diamond")):
        files = [file for file in shown if form == (TEACHER if file.role == TEACHER else file.precision)]
        if not files:
            continue
        color = [TEACHER_COLOR if file.role == TEACHER else colors[file.run]["color"] for file in files]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": "teacher (float32)" if form == "teacher" else f"students, {form}",
                "x": [_rounded(file.p50_ms) for file in files],
                "y": [_rounded(100 * file.mean_iou) for file in files],
                "text": [_label(summary, file) for file in files],
                "textposition": "top center",
                "customdata": [_hover(file) for file in files],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {"symbol": symbol, "size": 16 if form == "teacher" else 12, "color": color},
                "cliponaxis": False,
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "milliseconds per image, p50, end to end"}} | _ticks(shown),
            "yaxis": {"title": {"text": "val mIoU, %"}},
            "hovermode": "closest",
        },
    }


def _ticks(shown: list[ModelFile]) -> dict:
    """Whole numbers to read a logarithmic axis by (1, 2, 5, 10, ...): plotly writes "2" for 20 and for 200 alike.

    Where the files are so close that fewer than three of these lie between them, even steps come on top.
    """
    least, most = (pick((file.p50_ms for file in shown), default=1.0) for pick in (min, max))
    values = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    near = {value for value in values if least / 3 < value < most * 3}
    if least < most and sum(least <= value <= most for value in near) < 3:
        step = max((value for value in values if value <= (most - least) / 2), default=values[0])
        middle = round((least + most) / 2 / step)
        near |= {step * number for number in range(max(1, middle - 5), middle + 6)}  # the files span 2 to 5 steps
    ticks = sorted({_rounded(value) for value in near})
    return {"tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}


def _front(shown: list[ModelFile]) -> dict:
    points = [(file.p50_ms, file.mean_iou) for file in shown]
    front = sorted(point for point, on in zip(points, pareto_front(points), strict=True) if on)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [_rounded(latency_ms) for latency_ms, _ in front],
        "y": [_rounded(100 * mean_iou) for _, mean_iou in front],
        # A step: between two files of the front there is nothing to ship.
        "line": {"shape": "hv", "color": FRONT_COLOR, "width": 1.5, "dash": "dot"},
        "hoverinfo": "skip",
    }


def _label(summary: Summary, file: ModelFile) -> str:
    """A name beside the few points that are talked about; the others tell theirs on hover."""
    champion = summary.champion
    if file.role == TEACHER:
        return "teacher"
    picked = champion is not None and (file.run, file.precision) == (champion.run, champion.precision)
    return f"<b>{escape(file.run)}</b>" if picked else ""


def _hover(file: ModelFile) -> str:
    size = "" if file.mb is None else f", {file.mb:.1f} MB"
    return f"<b>{escape(file.run)}</b> {file.precision}<br>{file.mean_iou:.2%} mIoU, {file.p50_ms:.2f} ms{size}"


def curves_figure(summary: Summary, metrics: Path) -> dict:
    """Loss, label loss and holdout mIoU over the steps of all runs: distilling first, finetuning on the same axis."""
    traces, starts = [], set()
    for row, style in zip(summary.runs, line_styles(summary), strict=True):
        folder = metrics / "runs" / row.run
        points = read_curve(folder / "distill_curve.csv", 0)
        further = read_curve(folder / "finetune_curve.csv", row.steps or 0)
        if further:
            starts.add(row.steps or 0)
        traces += _curve_traces(row.run, points + further, style, {})
    teacher = read_curve(metrics / "teacher_curve.csv", 0)
    style = {"color": TEACHER_COLOR, "dash": "dash"}
    traces += _curve_traces(TEACHER, teacher, style, {"visible": "legendonly"})
    height = 1 / len(CURVES)
    layout: dict = {
        "xaxis": {"title": {"text": "optimizer step"}, "anchor": f"y{len(CURVES)}"},
        "hovermode": "closest",
        # Shared by all three charts: "paper" spans them from the bottom of the last to the top of the first.
        "shapes": [
            {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": _THIN} for x in sorted(starts)
        ],
    }
    for number, (_, title) in enumerate(CURVES):
        top = 1 - number * height
        # The gap is left below a chart, and the last one goes down to the axis.
        bottom = 0 if number == len(CURVES) - 1 else top - height * 0.86
        layout[_axis("yaxis", number)] = {"title": {"text": title}, "domain": [bottom, top]}
    return {"data": traces, "layout": layout}


_THIN = {"color": FRONT_COLOR, "width": 1, "dash": "dot"}


def _axis(name: str, number: int) -> str:
    return name if number == 0 else f"{name}{number + 1}"


def _curve_traces(run: str, points: list[dict], style: dict, extra: dict) -> list[dict]:
    traces = []
    for number, (column, _) in enumerate(CURVES):
        own = _thinned([(point["step"], point[column]) for point in points if point[column] is not None])
        if not own:
            continue
        scale = 100 if column == "holdout_mean_iou" else 1
        traces.append(
            {
                "type": "scatter",
                # A single point makes no line: it would not be seen.
                "mode": "lines+markers" if number == len(CURVES) - 1 or len(own) < 3 else "lines",
                "name": escape(run),
                "legendgroup": escape(run),
                "showlegend": not traces,
                "x": [step for step, _ in own],
                "y": [_rounded(scale * value) for _, value in own],
                "yaxis": _axis("y", number),
                "line": style | {"width": 1.8},
                "marker": {"size": 5},
                "hovertemplate": "%{fullData.name}<br>step %{x}: %{y}<extra></extra>",
            }
            | extra
        )
    return traces


def read_curve(path: Path, offset_steps: int) -> list[dict]:
    """The points of a curve file, `offset_steps` further on; none where it is missing or only a header.

    Raises:
        InputError: a line of it is no point.
    """
    columns = [column for column, _ in CURVES]
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                {"step": int(row["step"]) + offset_steps} | {column: _number(row.get(column)) for column in columns}
                for row in csv.DictReader(stream)
            ]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise InputError(f"{path}: no curve of a training ({type(error).__name__}: {error})") from None


def _number(cell: str | None) -> float | None:
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None


def _thinned(points: list[tuple]) -> list[tuple]:
    """At most MOST_POINTS of the points, evenly spread, the first and last among them."""
    if len(points) <= MOST_POINTS:
        return points
    last = len(points) - 1
    return [points[round(number * last / (MOST_POINTS - 1))] for number in range(MOST_POINTS)]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
