"""The four figures at the top of the report: what is shipped, each figure beside what it is to be measured by."""

from __future__ import annotations

from html import escape

from segdistill.report.answer import both_as, file_like, teacher_times
from segdistill.results.champion import ModelFile
from segdistill.results.row import CONTROL, Row
from segdistill.results.summary import Summary


def tiles(summary: Summary) -> str:
    """mIoU, latency, size and distance to the teacher of the champion; a figure that is not known is left out."""
    champion = summary.champion
    if champion is None:
        return ""
    row = summary.run(champion.run)
    found = (
        _accuracy(summary, champion, row),
        _latency(summary, champion),
        _size(summary, champion, row),
        _distance(summary, champion, row),
    )
    return f'<dl class="tiles">{"".join(map(_tile, filter(None, found)))}</dl>'


def _tile(texts: tuple[str, str, str]) -> str:
    name, figure, against = map(escape, texts)
    return f'<div><dt>{name}</dt><dd class="figure">{figure}</dd><dd class="against">{against}</dd></div>'


def _accuracy(summary: Summary, champion: ModelFile, row: Row) -> tuple[str, str, str]:
    control = file_like(summary, row.control, champion.precision) if row.control else None
    if row.role == CONTROL:
        against = "a control, trained without a teacher"
    elif control is None:
        against = "no control to compare with"
    else:
        gain = signed(100 * (champion.mean_iou - control.mean_iou))
        against = f"{gain} points against {control.run} ({both_as(champion, control)})"
    return f"val mIoU, {champion.precision} ONNX", f"{champion.mean_iou:.1%}", against


def _latency(summary: Summary, champion: ModelFile) -> tuple[str, str, str] | None:
    if champion.p50_ms is None:
        return None
    conditions = summary.benchmark.get("conditions", {})
    size, threads = conditions.get("size_px"), conditions.get("threads")
    name = f"p50 per {size[0]}x{size[1]} frame" if size else "p50 per frame"
    name += "" if threads is None else f", {threads} thread{'s' if threads != 1 else ''}"
    against = ", ".join(f"{p50_ms:.1f} ms in {engine}" for engine, p50_ms in teacher_times(summary, champion))
    return name, f"{champion.p50_ms:.1f} ms", "end to end" + (f"; the teacher: {against}" if against else "")


def _size(summary: Summary, champion: ModelFile, row: Row) -> tuple[str, str, str] | None:
    if champion.mb is None:
        return None
    teacher = summary.teacher.parameters if summary.teacher else None
    against = f"{row.parameters / teacher:.0%} of the teacher's parameters" if row.parameters and teacher else ""
    return f"{champion.precision} ONNX file", f"{champion.mb:.1f} MB", against


def _distance(summary: Summary, champion: ModelFile, row: Row) -> tuple[str, str, str] | None:
    teacher = summary.teacher
    if teacher is None or teacher.mean_iou is None:
        return None
    against = f"which has {teacher.mean_iou:.1%}, not quantized"
    if row.teacher_agreement is not None:
        against += f"; the same class on {row.teacher_agreement:.0%} of pixels"
    return "mIoU against the teacher", f"{signed(100 * (champion.mean_iou - teacher.mean_iou))} points", against


def signed(points: float) -> str:
    """One decimal with its sign, a true minus among them: +0.3, −1.1."""
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")
