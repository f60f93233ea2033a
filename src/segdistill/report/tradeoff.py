"""Accuracy against latency of all files: the chart as plotly.js takes it, and its legend as HTML.

plotly.js reads a little HTML in its texts, so every name is escaped here.
"""

from __future__ import annotations

from html import escape

from segdistill.report.styles import FRONT_COLOR, TEACHER_COLOR, line_styles, rounded, stroke
from segdistill.results.champion import ModelFile, pareto_front
from segdistill.results.row import TEACHER
from segdistill.results.summary import Summary

# Of each form: the symbol plotly draws, and the character that stands for it in the legend.
FORMS = {
    TEACHER: ("star", "\N{BLACK STAR}"),
    "float32": ("circle", "\N{BLACK CIRCLE}"),
    "int8": ("diamond", "\N{BLACK DIAMOND}"),
}
SIZE_PX, TEACHER_SIZE_PX, RING_PX, LARGEST_PX = 12, 16, 6, 42
# Files of one latency whose mIoU differ by less than this share of the chart would hide one another.
NEAR = 0.03


def tradeoff_figure(summary: Summary) -> dict:
    """Accuracy against latency of the files, with the Pareto front; those without a score or a time are left out."""
    shown = _shown(summary)
    traces = [_front(shown)] if shown else []
    traces += [_points(summary, form, files, _stacks(files, shown)) for form, files in _by_form(shown).items()]
    return {
        "data": traces,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "milliseconds per image, p50, end to end"}} | _ticks(shown),
            "yaxis": {"title": {"text": "val mIoU, %"}},
            "hovermode": "closest",
            "showlegend": False,
        },
    }


def _shown(summary: Summary) -> list[ModelFile]:
    return [file for file in summary.files if file.p50_ms is not None and file.mean_iou is not None]


def _by_form(shown: list[ModelFile]) -> dict[str, list[ModelFile]]:
    """The files that one symbol stands for, by its key in FORMS, as far as there are any."""
    found = {form: [f for f in shown if form == (TEACHER if f.role == TEACHER else f.precision)] for form in FORMS}
    return {form: files for form, files in found.items() if files}


def _stacks(files: list[ModelFile], shown: list[ModelFile]) -> list[list[ModelFile]]:
    """The files in groups that lie on one another: of one latency, each near the next in mIoU."""
    near = NEAR * (max(file.mean_iou for file in shown) - min(file.mean_iou for file in shown))
    stacks: list[list[ModelFile]] = []
    for file in sorted(files, key=lambda file: (file.p50_ms, file.mean_iou)):
        last = stacks[-1][-1] if stacks else None
        if last and last.p50_ms == file.p50_ms and file.mean_iou - last.mean_iou <= near:
            stacks[-1].append(file)
        else:
            stacks.append([file])
    return stacks


def _points(summary: Summary, form: str, files: list[ModelFile], stacks: list[list[ModelFile]]) -> dict:
    styles, symbol = line_styles(summary), FORMS[form][0]
    colors = {file: TEACHER_COLOR if form == TEACHER else styles[file.run]["color"] for file in files}
    sizes, hovers = {}, {}
    for stack in stacks:
        ring_px = min(RING_PX, (LARGEST_PX - SIZE_PX) / len(stack))
        for number, file in enumerate(reversed(stack)):
            # Each is a ring around the ones above it, so that all are seen where they are.
            sizes[file] = TEACHER_SIZE_PX if form == TEACHER else SIZE_PX + ring_px * number
            others = (other for other in reversed(stack) if other is not file)
            hovers[file] = "<br>".join(_hover(summary, one) for one in (file, *others))
    files = sorted(files, key=lambda file: -sizes[file])  # the largest lie below
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": form,
        "x": [rounded(file.p50_ms) for file in files],
        "y": [rounded(100 * file.mean_iou) for file in files],
        "text": [_label(summary, file) for file in files],
        "textposition": "top center",
        "customdata": [hovers[file] for file in files],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "symbol": [symbol if form == TEACHER else _symbol(symbol, styles[file.run]) for file in files],
            "size": [sizes[file] for file in files],
            "color": [colors[file] for file in files],
            "opacity": 1,  # plotly sees through markers of several sizes
        },
        "cliponaxis": False,
    }


def _symbol(symbol: str, style: dict) -> str:
    """Open where the colour is used a second time, as the run's line is dashed then."""
    return symbol if style["dash"] == "solid" else f"{symbol}-open"


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
    ticks = sorted({rounded(value) for value in near})
    return {"tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}


def _front(shown: list[ModelFile]) -> dict:
    points = [(file.p50_ms, file.mean_iou) for file in shown]
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
    """A name beside the few points that are talked about; the others tell theirs on hover."""
    champion = summary.champion
    if file.role == TEACHER:
        return TEACHER
    picked = champion is not None and (file.run, file.precision) == (champion.run, champion.precision)
    return f"<b>{escape(file.run)}</b>" if picked else ""


def _hover(summary: Summary, file: ModelFile) -> str:
    size = "" if file.mb is None else f", {file.mb:.1f} MB"
    form = _teacher_engine(summary) if file.role == TEACHER else file.precision
    return f"<b>{escape(file.run)}</b> {form}: {file.mean_iou:.2%} mIoU, {file.p50_ms:.2f} ms{size}"


def _teacher_engine(summary: Summary) -> str:
    return summary.teacher.timed()[0]


def tradeoff_legend(summary: Summary) -> str:
    """What the symbols and colours stand for, as a list."""
    shown, styles = _shown(summary), line_styles(summary)
    names = {"float32": "float32 ONNX", "int8": "int8 ONNX"}
    entries = []
    for form in _by_form(shown):
        name = f"teacher, {_teacher_engine(summary)}" if form == TEACHER else names[form]
        entries.append(f'<i class="symbol">{FORMS[form][1]}</i>{name}')
    if shown:
        entries.append(stroke({"color": FRONT_COLOR, "dash": "dot"}) + "Pareto front")
    named = {file.run for file in shown if file.role != TEACHER}
    entries += [stroke(style) + escape(run) for run, style in styles.items() if run in named]
    return f'<ul class="legend">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def teacher_note(summary: Summary) -> str:
    """How the teacher is shown in the chart, as a sentence."""
    if summary.teacher is None or summary.teacher.timed() is None:
        return "The teacher was not timed."
    engine = _teacher_engine(summary)
    only = "" if engine == "float32 ONNX" else ", the one form in which it was timed whole"
    return f"The teacher is shown with the mIoU of its check and its latency in {engine}{only}."
