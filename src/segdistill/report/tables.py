"""The tables of the report as HTML: runs and per-class IoU. Every text is escaped here."""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from segdistill.report.styles import line_styles, stroke
from segdistill.results.row import CONTROL, STUDENT, TEACHER, Row
from segdistill.results.summary import Summary

MISSING, MINUS = "–", "\N{MINUS SIGN}"
NOT_EVALUATED, BLACK = "", (0, 0, 0)


class Column(NamedTuple):
    """A column of a table of rows: the attribute it shows, how, and what it means."""

    attribute: str
    heading: str
    form: str  # a format specification; empty for texts
    meaning: str


KEY_COLUMNS = (
    Column("run", "Run", "", "name in params.yaml"),
    Column("arch", "Network", "", "architecture"),
    Column("teacher", "Learns from", "", "teacher logits: views, frame or online"),
    Column("alpha", "α", "g", "weight of the distillation loss"),
    Column("lr", "lr", "g", "learning rate"),
    Column("distilled_mean_iou", "mIoU distilled", ".2%", "val mIoU after the first steps"),
    Column("mean_iou", "mIoU", ".2%", "val mIoU of the finished student, in PyTorch"),
    Column("gain_over_vanilla", "Δ control", "+.2f", "points of mIoU above the control, both in PyTorch"),
    Column("teacher_agreement", "Agrees", ".1%", "pixels of val where it says what the teacher says"),
    Column("float32_mean_iou", "mIoU float32", ".2%", "val mIoU of the float32 ONNX file"),
    Column("int8_mean_iou", "mIoU int8", ".2%", "val mIoU of the int8 ONNX file"),
    Column("float32_mb", "MB float32", ".2f", "size of the float32 ONNX file"),
    Column("int8_mb", "MB int8", ".2f", "size of the int8 ONNX file"),
    Column("onnx_float32_p50_ms", "ms float32", ".2f", "p50 end to end, onnxruntime"),
    Column("onnx_int8_p50_ms", "ms int8", ".2f", "p50 end to end, onnxruntime"),
)
OTHER_COLUMNS = (
    KEY_COLUMNS[0],
    Column("method", "Method", "", "distillation loss"),
    Column("temperature", "T", "g", "temperature of the distillation loss"),
    Column("label_loss", "Label loss", "", "mean losses of different kinds cannot be compared"),
    Column("schedule", "Schedule", "", "learning rate over the first steps"),
    Column("steps", "Steps", ",d", "first steps"),
    Column("finetune_steps", "Finetune", ",d", "further steps"),
    Column("seed", "Seed", "d", "of initial weights and batches"),
    Column("parameters", "Parameters", ",d", "weights of the network"),
    Column("mean_loss", "Mean loss", ".4f", "label loss on val"),
    Column("overall_acc", "Overall acc", ".2%", "pixels of val that are right"),
    Column("mean_acc", "Mean acc", ".2%", "mean recall of the classes"),
    Column("freqw_acc", "FreqW acc", ".2%", "IoU weighted by class frequency"),
    Column("torch_p50_ms", "ms torch", ".2f", "p50 end to end, PyTorch as it comes"),
    Column("torch_best_p50_ms", "ms torch best", ".2f", "p50 end to end, PyTorch at its best"),
    Column("s_per_image", "s / image", ".4f", "mean, PyTorch"),
    Column("torch_total_ms", "ms total torch", ",.0f", "all frames of the benchmark, PyTorch"),
    Column("onnx_total_ms", "ms total ONNX", ",.0f", "all frames of the benchmark, float32 ONNX"),
)


def runs_table(summary: Summary, columns: tuple[Column, ...]) -> str:
    """All models as a table that sorts by a click on a heading."""
    heads = "".join(
        f'<th scope="col" class="{_kind(column)}" title="{escape(column.meaning)}">'
        f'<button type="button">{escape(column.heading)}</button></th>'
        for column in columns
    )
    lines = {run: stroke(style) for run, style in line_styles(summary).items()}
    rows = "".join(_run_row(summary, row, columns, lines.get(row.run, "")) for row in summary.rows)
    return f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _kind(column: Column) -> str:
    return "number" if column.form else "text"


def _run_row(summary: Summary, row: Row, columns: tuple[Column, ...], line: str) -> str:
    champion = summary.champion
    picked = champion is not None and row.role != TEACHER and row.run == champion.run
    cells = "".join(_cell(row, column, picked, line) for column in columns)
    return f'<tr class="{escape(row.role)}{" champion" if picked else ""}">{cells}</tr>'


def _cell(row: Row, column: Column, picked: bool, line: str) -> str:
    value = getattr(row, column.attribute)
    if column.attribute == "run":
        badges = f'<span class="badge">{escape(row.role)}</span>' if row.role != STUDENT else ""
        badges += '<span class="badge pick">ship</span>' if picked else ""
        return f'<th scope="row" data-value="{escape(row.run)}">{line}{escape(row.run)}{badges}</th>'
    if value is None:
        return f'<td class="{_kind(column)} none" data-value="">{MISSING}</td>'
    if column.attribute == "gain_over_vanilla":
        if row.control == row.run:
            # Its gain over itself is no finding.
            return f'<td class="number none" data-value="0">{MISSING}</td>'
        value *= 100
        sign = "gain" if value > 0 else "loss" if value < 0 else ""
        title = f"against {row.control}"
        text = f"{value:+.2f}".replace("-", MINUS)
        return f'<td class="number {sign}" data-value="{value!r}" title="{escape(title)}">{text}</td>'
    text = format(value, column.form) if column.form else str(value)
    return f'<td class="{_kind(column)}" data-value="{escape(str(value))}">{escape(text)}</td>'


def class_table(summary: Summary) -> str:
    """IoU by class and model as a heat map; the best student of a class is set in bold."""
    names = class_names(summary)
    heads = "".join(
        f'<th scope="col"><span class="upright">{_swatch(summary, name)}{escape(spaced(name))}</span></th>'
        for name in names
    )
    best = {name: max(filter(None, (row.class_iou.get(name) for row in summary.runs)), default=None) for name in names}
    rows = []
    for row in summary.rows:
        cells = "".join(_heat(row.class_iou.get(name), row.role != TEACHER and best[name]) for name in names)
        mean = _heat(row.mean_iou, False)
        rows.append(f'<tr class="{escape(row.role)}"><th scope="row">{escape(row.run)}</th>{mean}{cells}</tr>')
    mean_head = '<th scope="col"><span class="upright">mean</span></th>'
    head = f'<tr><th scope="col" class="corner">IoU, %</th>{mean_head}{heads}</tr>'
    return f'<table class="heat"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _heat(iou: float | None, best: float | None | bool) -> str:
    if iou is None:
        return f'<td class="none">{MISSING}</td>'
    bold = ' class="best"' if best and iou == best and iou >= 0.005 else ""  # the best of zeros is no merit
    return f'<td{bold} style="--iou:{iou:.3f}">{100 * iou:.0f}</td>'


def class_names(summary: Summary) -> list[str]:
    """The class names in their order, as keys of class_iou."""
    return next((list(row.class_iou) for row in summary.rows if row.class_iou), [])


def class_legend(summary: Summary) -> str:
    """What the colours of the class maps stand for."""
    entries = [f"<li>{_swatch(summary, name)}{escape(spaced(name))}</li>" for name in class_names(summary)]
    return f'<ul class="legend">{"".join(entries)}<li>{_swatch(summary, NOT_EVALUATED)}not evaluated</li></ul>'


def _swatch(summary: Summary, name: str) -> str:
    """A patch of the colour that the class has in the pictures; what is no class is black there."""
    color = BLACK if name == NOT_EVALUATED else summary.class_colors.get(name)
    if color is None:  # no picture was kept, so no colour needs to be told
        return ""
    red, green, blue = color
    return f'<i class="swatch" style="background:rgb({red},{green},{blue})"></i>'


def spaced(name: str) -> str:
    return name.replace("_", " ")


def has_uncontrolled(summary: Summary) -> bool:
    """Is a run measured against a control of another network?"""
    runs = [row for row in summary.runs if row.control]
    return any(row.role != CONTROL and summary.run(row.control).arch != row.arch for row in runs)
