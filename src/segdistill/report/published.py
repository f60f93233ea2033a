"""Two earlier works whose rows a sweep can repeat: their published figures, ours below them, and what differs.

The figures lie in published_a.csv and published_b.csv; they are those of docs/sources.md, where more is said of them.
Scores are fractions. `phase` says which figures of ours belong below: of the teacher, the distilled or the finetuned
student; `schedule` is that of the first steps, `steps` counts all of them. An empty cell was not given.
"""

from __future__ import annotations

import csv
from html import escape
from pathlib import Path

from segdistill.core.files import read_json
from segdistill.params.model import Params
from segdistill.results.row import STUDENT, TEACHER, Row
from segdistill.results.summary import Summary

SOURCE_A = Path(__file__).with_name("published_a.csv")
SOURCE_B = Path(__file__).with_name("published_b.csv")
SOURCE_B_FRAMES = 143
FULL_SIZE_PX = (1024, 2048)
USUAL_METHOD, USUAL_TEMPERATURE = "kl", 1.0
MISSING, NO_RUN = "–", "no such run here"
# Heading and form of each figure, by column of the files.
FIGURES_A = {
    "mean_loss": ("Mean loss", ".4f"),
    "overall_acc": ("Overall acc", ".2%"),
    "mean_acc": ("Mean acc", ".2%"),
    "mean_iou": ("mIoU", ".2%"),
    "s_per_image": ("s / image*", ".4f"),
}
FIGURES_B = {
    "torch_total_ms": ("PyTorch, ms*", ",.0f"),
    "onnx_total_ms": ("ONNX, ms*", ",.0f"),
    "ratio": ("Ratio", ".1f"),
    "overall_acc": ("Overall acc", ".2%"),
    "mean_acc": ("Mean acc", ".2%"),
    "freqw_acc": ("FreqW acc", ".2%"),
    "mean_iou": ("mIoU", ".2%"),
}


def published_rows(path: Path) -> list[dict[str, str]]:
    """The rows of SOURCE_A or SOURCE_B, as they are written."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def source_a_table(summary: Summary, metrics: Path) -> str:
    """Every row of source A, and below each the run of the same network, alpha, rate and schedule."""
    pairs = []
    for published in published_rows(SOURCE_A):
        row = _fitting(summary, published)
        given = [published["model"], published["alpha"], published["lr"], _count(published["steps"])]
        own = [NO_RUN, "", "", ""]
        figures: dict = {}
        if row is not None:
            steps = "" if row.steps is None else f"{_steps(row, published['phase']):,}"
            own = [row.run, _plain(row.alpha), _plain(row.lr), steps]
            figures = _own_figures(metrics, row, published["phase"]) | {"s_per_image": row.s_per_image}
        mark = "" if row is None else _mark(differences(published, row, summary.params))
        pairs.append(_pair(published["row"], given, published, own, figures, mark, FIGURES_A))
    return _table(("Row", "Model", "α", "lr", "Steps"), FIGURES_A, pairs)


def source_b_table(summary: Summary) -> str:
    """PyTorch against ONNX of source B, and below the light student and the teacher of this sweep."""
    pairs = []
    frames = summary.benchmark.get("conditions", {}).get("frames")
    for published in published_rows(SOURCE_B):
        arch = published["arch"]
        row = next((row for row in summary.runs if row.arch == arch), None) if arch else summary.teacher
        figures = {} if row is None else {name: getattr(row, name, None) for name in FIGURES_B}
        own = [NO_RUN, ""] if row is None else [row.run, _count(str(frames or ""))]
        given = [published["model"], str(SOURCE_B_FRAMES)]
        mark = "" if row is None else _mark(["data", "timing"])
        pairs.append(_pair(None, given, published | _ratio(published), own, figures | _ratio(figures), mark, FIGURES_B))
    return _table(("Model", "Frames"), FIGURES_B, pairs)


def differences(published: dict[str, str], row: Row, params: Params | None) -> list[str]:
    """What is known to differ between a row of source A and the run `row` beside it; empty where nothing is.

    The source does not give its batch size, crops, seed or machine, so the most that can be said is that all it gives
    is the same.
    """
    if params is None:
        return ["data"]
    found = []
    if params.data.source != "cityscapes":
        found.append("data")
    elif params.data.size_px not in (None, FULL_SIZE_PX):
        found.append("frame size")
    if row.role == TEACHER:
        return found
    if published["steps"] and int(published["steps"]) != _steps(row, published["phase"]):
        found.append("steps")
    if row.label_loss != "cross_entropy":
        found.append("label loss")
    if row.role == STUDENT:
        found += _other_lesson(row, params)
    if published["phase"] == "finetune":
        found += _other_finetuning(row, params)
    return found


def _other_lesson(row: Row, params: Params) -> list[str]:
    """What a student learned otherwise. Of the loss the source gives alpha alone: this is the usual one."""
    settings, found = params.distill_settings(row.run), []
    if params.teacher.described not in {row["arch"] for row in published_rows(SOURCE_A) if row["phase"] == TEACHER}:
        found.append("teacher")
    if settings.method != USUAL_METHOD:
        found.append("method")
    if settings.temperature != USUAL_TEMPERATURE:
        found.append("temperature")
    return found


def _other_finetuning(row: Row, params: Params) -> list[str]:
    """What is not as "30,000 more with StepLR": the alpha and the rate are those of the first steps."""
    further, found = params.finetune_params(row.run), []
    if further.schedule != "step":
        found.append("finetune schedule")
    if further.lr not in (None, row.lr):
        found.append("finetune lr")
    if further.alpha not in (None, row.alpha):
        found.append("finetune alpha")
    return found


def _fitting(summary: Summary, published: dict[str, str]) -> Row | None:
    if published["phase"] == TEACHER:
        teacher = summary.teacher
        return teacher if teacher is not None and teacher.arch == published["arch"] else None
    wanted = (published["arch"], float(published["alpha"]), float(published["lr"]), published["schedule"])
    return next((row for row in summary.runs if (row.arch, row.alpha, row.lr, row.schedule) == wanted), None)


def _steps(row: Row, phase: str) -> int:
    return (row.steps or 0) + ((row.finetune_steps or 0) if phase == "finetune" else 0)


def _own_figures(metrics: Path, row: Row, phase: str) -> dict:
    path = metrics / "teacher.json" if phase == TEACHER else metrics / "runs" / row.run / f"{phase}.json"
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def _ratio(figures: dict) -> dict[str, float | None]:
    torch_ms, onnx_ms = figures.get("torch_total_ms"), figures.get("onnx_total_ms")
    return {"ratio": float(torch_ms) / float(onnx_ms) if torch_ms and onnx_ms else None}


def _mark(differing: list[str]) -> str:
    if not differing:
        return '<span class="badge pick">same as far as given</span>'
    return f'<span class="badge">differs: {escape(", ".join(differing))}</span>'


def _pair(
    head: str | None, given: list[str], published: dict, own: list[str], figures: dict, mark: str, columns: dict
) -> str:
    """Two lines of a table: the published figures, and below them ours."""
    number = "" if head is None else f'<th scope="rowgroup" rowspan="2">{escape(head)}</th>'
    first = "".join(map(_text_or_number, given)) + _figures(published, columns) + "<td>published</td>"
    second = "".join(map(_text_or_number, own)) + _figures(figures, columns) + f"<td>{mark}</td>"
    return f'<tbody><tr>{number}{first}</tr><tr class="here">{second}</tr></tbody>'


def _text_or_number(text: str) -> str:
    kind = "number" if text.replace(",", "").replace(".", "").isdigit() else "none" if text == NO_RUN else "text"
    return f'<td class="{kind}">{escape(text)}</td>'


def _figures(figures: dict, columns: dict) -> str:
    cells = []
    for name, (_, form) in columns.items():
        value = figures.get(name)
        text = MISSING if value in (None, "") else format(float(value), form)
        cells.append(f'<td class="number">{text}</td>')
    return "".join(cells)


def _table(heads: tuple[str, ...], columns: dict, pairs: list[str]) -> str:
    texts = "".join(
        f'<th scope="col" class="{"text" if text in ("Row", "Model") else "number"}">{escape(text)}</th>'
        for text in heads
    )
    figures = "".join(f'<th scope="col" class="number">{escape(heading)}</th>' for heading, _ in columns.values())
    head = f'<thead><tr>{texts}{figures}<th scope="col">Protocol</th></tr></thead>'
    return f'<table class="pairs">{head}{"".join(pairs)}</table>'


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _count(text: str) -> str:
    return f"{int(text):,}" if text else ""
