"""The training curves of the report as plotly.js takes them: plain data, coloured by the page to suit its theme.

plotly.js reads a little HTML in its texts, so every name is escaped here.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from segdistill.formats.curve import read_curve
from segdistill.report.styles import FRONT_COLOR, TEACHER_COLOR, line_styles, rounded
from segdistill.results.row import TEACHER
from segdistill.results.summary import Summary

CURVES = (("loss", "Loss"), ("label_loss", "Label loss"), ("holdout_mean_iou", "Holdout mIoU, %"))
MAX_POINTS = 400  # per run and curve: more cannot be seen and make the page slow


def curves_figure(summary: Summary, metrics: Path) -> dict:
    """Loss, label loss and holdout mIoU over the steps of all runs: distilling first, finetuning on the same axis."""
    traces, starts = [], set()
    for row, style in zip(summary.runs, line_styles(summary).values(), strict=True):
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
                "y": [rounded(scale * value) for _, value in own],
                "yaxis": _axis("y", number),
                "line": style | {"width": 1.8},
                "marker": {"size": 5},
                "hovertemplate": "%{fullData.name}<br>step %{x}: %{y}<extra></extra>",
            }
            | extra
        )
    return traces


def _thinned(points: list[tuple]) -> list[tuple]:
    """At most MAX_POINTS of the points, evenly spread, the first and last among them."""
    if len(points) <= MAX_POINTS:
        return points
    last = len(points) - 1
    return [points[round(number * last / (MAX_POINTS - 1))] for number in range(MAX_POINTS)]
