"""The four figures at the top of the report: what is shipped, each figure beside what it is to be measured by."""

from __future__ import annotations

from html import escape

from segdistill.report.answer import file_like
from segdistill.summary import Summary
from segdistill.summary.champion import ModelFile
from segdistill.summary.row import CONTROL, Row


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
        against = f"{signed(100 * (champion.mean_iou - control.mean_iou))} points against {control.run}"
    return "val mIoU", f"{champion.mean_iou:.1%}", against


def _latency(summary: Summary, champion: ModelFile) -> tuple[str, str, str] | None:
    if champion.p50_ms is None:
        return None
    teacher_ms = summary.teacher.onnx_float32_p50_ms if summary.teacher else None
    against = f"the teacher takes {teacher_ms:.1f} ms" if teacher_ms else "p50, end to end"
    return "per image (p50, end to end)", f"{champion.p50_ms:.1f} ms", against


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
    agrees = f"agrees on {row.teacher_agreement:.0%} of pixels" if row.teacher_agreement is not None else "mIoU"
    return "mIoU against the teacher", f"{signed(100 * (champion.mean_iou - teacher.mean_iou))} points", agrees


def signed(points: float) -> str:
    """One decimal with its sign, a true minus among them: +0.3, −1.1."""
    return f"{points:+.1f}".replace("-", "\N{MINUS SIGN}")
