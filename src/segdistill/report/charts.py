"""The charts of the report as plotly.js takes them: plain data, coloured by the page to suit its theme.

plotly.js reads a little HTML in its texts, so names are escaped here, where they become such texts.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdistill.formats.curve import read_curve
from segdistill.results.champion import ModelFile, pareto_front
from segdistill.results.row import CONTROL, TEACHER, Row
from segdistill.results.summary import Summary
from segdistill.scoring.record import ValRecord

# Readable on white and on near-black alike; greys are kept for the teacher, the controls and the front.
COLORS = ("#3f7fd6", "#dd7a2b", "#2b9a72", "#c74f86", "#8764d0", "#ad8d17", "#24a0b5", "#cf4f3f")
TEACHER_COLOR, FRONT_COLOR = "#8a8f98", "#9aa0aa"
CONTROL_COLORS = ("#6b7280", "#a08c7d")
DASHES = {"solid": "none", "dash": "7 3", "dot": "2 2", "dashdot": "7 2 2 2"}  # by plotly's name: as SVG
# Of each form: the symbol plotly draws, the character that stands for it in the legend, and its name there.
FORMS = {
    TEACHER: ("star", "\N{BLACK STAR}", "teacher"),
    "float32": ("circle", "\N{BLACK CIRCLE}", "float32 ONNX"),
    "int8": ("diamond", "\N{BLACK DIAMOND}", "int8 ONNX"),
}
SIZE_PX, TEACHER_SIZE_PX, RING_PX, LARGEST_PX = 12, 16, 6, 42
# Files of one latency whose mIoU differ by less than this share of the chart would hide one another.
NEAR = 0.03
# Holdout mIoU first: it alone compares runs of different losses.
CURVES = (("holdout_mean_iou", "Holdout mIoU, %"), ("loss", "Loss"), ("label_loss", "Label loss"))
MAX_POINTS = 400  # per run and curve: more cannot be seen and make the page slow


def line_styles(summary: Summary) -> dict[str, dict[str, str]]:
    """Return colour and dash of each run, by its name: those of its setting, the same in all charts."""
    styles: dict[str, dict[str, str]] = {}
    students, controls, dashes = 0, 0, tuple(DASHES)
    for setting in summary.settings:
        colors: tuple[str, ...] = CONTROL_COLORS if setting.role == CONTROL else COLORS
        if setting.role == CONTROL:
            number, controls = controls, controls + 1
        else:
            number, students = students, students + 1
        style = {"color": colors[number % len(colors)], "dash": dashes[number // len(colors) % len(dashes)]}
        styles |= {row.run: style for row in setting.rows}
    return styles


def rounded(value: float) -> float:
    """Return five significant digits: more cannot be seen in a chart, and make the page larger."""
    return float(f"{value:.5g}")


def tradeoff_chart(summary: Summary) -> dict[str, Any]:
    """Return accuracy against latency of the files with the Pareto front; files without mIoU or time are left out."""
    shown = timed_files(summary)
    traces = [_front(shown)] if shown else []
    traces += [_points(summary, form, files, _stacks(files, shown)) for form, files in by_form(shown).items()]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "milliseconds per image (p50, end to end; logarithmic axis)"}}
            | _ticks(shown),
            "yaxis": {"title": {"text": "val mIoU, %"}},
            "hovermode": "closest",
            "showlegend": False,
        },
    }


def timed_files(summary: Summary) -> list[ModelFile]:
    """Return the files that the chart shows."""
    return [file for file in summary.files if file.p50_ms is not None and file.mean_iou is not None]


def by_form(shown: list[ModelFile]) -> dict[str, list[ModelFile]]:
    """Return the files that one symbol stands for, by its key in FORMS; keys without files are left out."""
    found = {form: [f for f in shown if form == (TEACHER if f.role == TEACHER else f.precision)] for form in FORMS}
    return {form: files for form, files in found.items() if files}


def _stacks(files: list[ModelFile], shown: list[ModelFile]) -> list[list[ModelFile]]:
    """Return the files in groups that overlap in the chart: of one latency, each near the next in mIoU."""
    near = NEAR * (max(file.score for file in shown) - min(file.score for file in shown))
    stacks: list[list[ModelFile]] = []
    for file in sorted(files, key=lambda file: (file.latency_ms, file.score)):
        last = stacks[-1][-1] if stacks else None
        if last and last.latency_ms == file.latency_ms and file.score - last.score <= near:
            stacks[-1].append(file)
        else:
            stacks.append([file])
    return stacks


def _points(summary: Summary, form: str, files: list[ModelFile], stacks: list[list[ModelFile]]) -> dict[str, Any]:
    styles, symbol = line_styles(summary), FORMS[form][0]
    sizes, hovers = {}, {}
    for stack in stacks:
        ring_px = min(RING_PX, (LARGEST_PX - SIZE_PX) / len(stack))
        for number, file in enumerate(reversed(stack)):
            # Each is a ring around the ones above it, so that all are seen at their values.
            sizes[file] = TEACHER_SIZE_PX if form == TEACHER else SIZE_PX + ring_px * number
            others = (other for other in reversed(stack) if other is not file)
            hovers[file] = "<br>".join(_hover(summary, one) for one in (file, *others))
    files = sorted(files, key=lambda file: -sizes[file])  # the largest are drawn first, below the others
    # Open where the colour is used a second time, as the run's line is dashed then.
    is_open = [form != TEACHER and styles[file.run]["dash"] != "solid" for file in files]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": form,
        "x": [rounded(file.latency_ms) for file in files],
        "y": [rounded(100 * file.score) for file in files],
        "text": [_label(summary, file) for file in files],
        "textposition": "top left",  # of a file on the front nothing is up and to the left
        "customdata": [hovers[file] for file in files],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "symbol": [f"{symbol}-open" if is_second else symbol for is_second in is_open],
            "size": [sizes[file] for file in files],
            "color": [TEACHER_COLOR if form == TEACHER else styles[file.run]["color"] for file in files],
            "opacity": 1,  # plotly makes markers of several sizes translucent
        },
        "cliponaxis": False,
    }


def _ticks(shown: list[ModelFile]) -> dict[str, list]:
    """Return whole numbers to read a logarithmic axis by (1, 2, 5, 10, ...): plotly writes "2" for 20 and for 200.

    Where fewer than three of these are between the files, even steps are added.
    """
    least, most = (pick((file.latency_ms for file in shown), default=1.0) for pick in (min, max))
    values = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    near = {value for value in values if least / 3 < value < most * 3}
    if least < most and sum(least <= value <= most for value in near) < 3:
        step = max((value for value in values if value <= (most - least) / 2), default=values[0])
        middle = round((least + most) / 2 / step)
        near |= {step * number for number in range(max(1, middle - 5), middle + 6)}  # the files span 2 to 5 steps
    ticks = sorted({rounded(value) for value in near})
    return {"tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}


def _front(shown: list[ModelFile]) -> dict[str, Any]:
    points = [(file.latency_ms, file.score) for file in shown]
    front = sorted(point for point, on in zip(points, pareto_front(points), strict=True) if on)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": [rounded(latency_ms) for latency_ms, _ in front],
        "y": [rounded(100 * mean_iou) for _, mean_iou in front],
        # A step: between two files of the front there is nothing to ship.
        "line": {"shape": "hv", "color": FRONT_COLOR, "width": 1.5, "dash": "dot"},
        "hoverinfo": "skip",
    }


def _label(summary: Summary, file: ModelFile) -> str:
    """Return the name next to a file on the front; the others are named on hover."""
    champion = summary.champion
    if file.role == TEACHER:
        return TEACHER
    if champion is not None and (file.run, file.precision) == (champion.run, champion.precision):
        return f"<b>{escape(file.run)}</b>"
    return escape(file.run) if file.on_front else ""


def _hover(summary: Summary, file: ModelFile) -> str:
    size = "" if file.mb is None else f", {file.mb:.1f} MB"
    timed = summary.teacher.timed() if summary.teacher and file.role == TEACHER else None
    form = timed[0] if timed else file.precision
    return f"<b>{escape(file.run)}</b> {form}: {file.score:.2%} mIoU, {file.latency_ms:.2f} ms{size}"


def curves_chart(summary: Summary, metrics: Path) -> dict[str, Any]:
    """Return holdout mIoU, loss and label loss over the steps of all runs: distilling first, then finetuning."""
    styles, starts = line_styles(summary), set()
    traces: list[dict[str, Any]] = []
    for setting in summary.settings:
        for row in setting.rows:
            folder = metrics / "runs" / row.run
            further = read_curve(folder / "finetune_curve.csv", row.steps or 0)
            if further:
                starts.add(row.steps or 0)
            points = read_curve(folder / "distill_curve.csv") + further
            # One entry of the legend shows or hides all seeds of a setting.
            is_first = row is setting.rows[0]
            traces += _curve_traces(row.run, setting.name, points, styles[row.run], {"showlegend": is_first})
    style = {"color": TEACHER_COLOR, "dash": "dash"}
    teacher = read_curve(metrics / "teacher_curve.csv")
    traces += _curve_traces(TEACHER, TEACHER, teacher, style, {"visible": "legendonly"})
    height, thin = 1 / len(CURVES), {"color": FRONT_COLOR, "width": 1, "dash": "dot"}
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "optimizer step"}, "anchor": f"y{len(CURVES)}"},
        "hovermode": "closest",
        # Shared by all three charts: "paper" spans them from the bottom of the last to the top of the first.
        "shapes": [
            {"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": thin} for x in sorted(starts)
        ],
    }
    for number, (_, title) in enumerate(CURVES):
        top = 1 - number * height
        # The gap is left below a chart, and the last one reaches down to the axis.
        bottom = 0 if number == len(CURVES) - 1 else top - height * 0.86
        layout[f"yaxis{number + 1 if number else ''}"] = {"title": {"text": title}, "domain": [bottom, top]}
    return {"data": traces, "layout": layout}


def _curve_traces(run: str, group: str, points: list[dict], style: dict, extra: dict) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for number, (column, _) in enumerate(CURVES):
        own = [(point["step"], point[column]) for point in points if point[column] is not None]
        if not own:
            continue
        if len(own) > MAX_POINTS:  # evenly spaced, the first and last among them
            own = [own[round(place * (len(own) - 1) / (MAX_POINTS - 1))] for place in range(MAX_POINTS)]
        is_miou = column == "holdout_mean_iou"
        trace = {
            "type": "scatter",
            "mode": "lines+markers" if is_miou or len(own) < 3 else "lines",  # a single point makes no line
            "name": escape(group),
            "legendgroup": escape(group),
            "x": [step for step, _ in own],
            "y": [rounded(100 * value if is_miou else value) for _, value in own],
            "yaxis": f"y{number + 1 if number else ''}",
            "line": style | {"width": 1.8},
            "marker": {"size": 5},
            "hovertemplate": f"{escape(run)}<br>step %{{x}}: %{{y}}<extra></extra>",
        }
        traces.append(trace | extra | ({"showlegend": False} if traces else {}))
    return traces


class Matrix(NamedTuple):
    """`counts`: pixels int64 (C, C) of one model, row = true class; `label` is what a reader calls the model."""

    label: str
    names: list[str]
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """Return (C, C), the share of a true class's pixels predicted as each class; NaN where it does not occur."""
        of_class = self.counts.sum(1, keepdims=True)
        return np.divide(self.counts, of_class, out=np.full(self.counts.shape, np.nan), where=of_class > 0)


def matrices(summary: Summary, metrics: Path) -> list[Matrix]:
    """Return those of the run to ship, the run it is compared with and the teacher, as far as they were kept."""
    rows = [row for row in (summary.shown, summary.compared_with) if row is not None]
    models = [(label_of(row), metrics / "runs" / row.run / "val") for row in rows]
    found = []
    for label, folder in (*models, (TEACHER, metrics / "val")):
        try:
            record = ValRecord(folder)
        except FileNotFoundError:
            continue
        found.append(Matrix(label, record.class_names, record.counts_CC))
    return found


def label_of(row: Row) -> str:
    """Return the name of a run, with its role where it is a control."""
    return f"{row.run} (control)" if row.role == CONTROL else row.run


def confusion_chart(found: list[Matrix]) -> dict[str, Any]:
    """Return the matrices as one heat map each; the page shows one at a time."""
    traces = []
    for number, matrix in enumerate(found):
        names, shares = [escape(name) for name in matrix.names], matrix.shares
        # Empty where a share rounds to 0: a full page of zeros hides what matters.
        texts = [["" if np.isnan(cell) or cell < 0.005 else f"{100 * cell:.0f}" for cell in row] for row in shares]
        traces.append(
            {
                "type": "heatmap",
                "name": escape(matrix.label),
                "visible": number == 0,
                "x": names,
                "y": names,
                "z": [[None if np.isnan(cell) else round(100 * float(cell), 2) for cell in row] for row in shares],
                "text": texts,
                "texttemplate": "%{text}",
                "customdata": matrix.counts.tolist(),
                "hovertemplate": "<b>%{y}</b> predicted as <b>%{x}</b><br>%{z}% of its pixels, "
                "%{customdata:,} px<extra></extra>",
                "zmin": 0,
                "zmax": 100,
                "xgap": 1,
                "ygap": 1,
                "showscale": False,
            }
        )
    axis = {"showgrid": False, "ticks": "", "dtick": 1}
    layout = {
        "xaxis": {"side": "top", "tickangle": -60, "title": {"text": "predicted class"}} | axis,
        "yaxis": {"autorange": "reversed", "title": {"text": "true class"}} | axis,
    }
    return {"data": traces, "layout": layout}
