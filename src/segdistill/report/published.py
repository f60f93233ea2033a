"""Two earlier works whose rows a Cityscapes sweep can repeat: their metrics, those of this sweep, and what differs.

The numbers are in published_a.csv and published_b.csv; docs/sources.md says more of them. Scores are fractions. `phase`
says which metrics of the sweep belong to a row: of the teacher, the distilled or the finetuned student; `schedule` is
that of the first steps, `steps` counts all of them. An empty cell was not given.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, NamedTuple

from segdistill.params.model import Params
from segdistill.results.row import MISSING, STUDENT, TEACHER, Row
from segdistill.results.summary import Summary

SOURCE_A = Path(__file__).with_name("published_a.csv")
SOURCE_B = Path(__file__).with_name("published_b.csv")
SOURCE_B_FRAMES = 143
FULL_SIZE_PX = (1024, 2048)
USUAL_METHOD, USUAL_TEMPERATURE = "kl", 1.0
# Heading and form of each metric, by column of the files.
METRICS_A = {
    "mean_loss": ("Mean loss", ".4f"),
    "overall_acc": ("Overall acc", ".2%"),
    "mean_acc": ("Mean acc", ".2%"),
    "mean_iou": ("mIoU", ".2%"),
    "s_per_image": ("s / image*", ".4f"),
}
METRICS_B = {
    "torch_total_ms": ("PyTorch, ms*", ",.0f"),
    "onnx_total_ms": ("ONNX, ms*", ",.0f"),
    "ratio": ("Ratio", ".1f"),
    "overall_acc": ("Overall acc", ".2%"),
    "mean_acc": ("Mean acc", ".2%"),
    "freqw_acc": ("FreqW acc", ".2%"),
    "mean_iou": ("mIoU", ".2%"),
}


class Pair(NamedTuple):
    """A published row and the row of this sweep that repeats it. `run` is None where none does.

    given and own: texts of the first columns; published and measured: texts of the metrics.
    """

    number: str
    given: list[str]
    published: list[str]
    run: str | None
    own: list[str]
    measured: list[str]
    differing: list[str]


def published_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of SOURCE_A or SOURCE_B, as they are written."""
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def published_tables(summary: Summary) -> dict[str, Any] | None:
    """Return both tables; None where the sweep is not of Cityscapes, because nothing would compare."""
    if summary.params is None or summary.params.data.source != "cityscapes":
        return None
    return {
        "a": {"heads": [head for head, _ in METRICS_A.values()], "pairs": source_a(summary)},
        "b": {"heads": [head for head, _ in METRICS_B.values()], "pairs": source_b(summary)},
    }


def source_a(summary: Summary) -> list[Pair]:
    """Return every row of source A with the run of the same network, alpha, rate and schedule."""
    pairs = []
    for published in published_rows(SOURCE_A):
        row, phase = None, published["phase"]
        if phase == TEACHER:
            teacher = summary.teacher
            row = teacher if teacher is not None and teacher.arch == published["arch"] else None
        else:
            wanted = (published["arch"], float(published["alpha"]), float(published["lr"]), published["schedule"])
            row = next((row for row in summary.runs if (row.arch, row.alpha, row.lr, row.schedule) == wanted), None)
        given = [
            published["model"],
            published["alpha"],
            published["lr"],
            f"{int(published['steps']):,}" if published["steps"] else "",
        ]
        own, measured, differing = ["", "", "", ""], {}, []
        if row is not None:
            steps = "" if row.steps is None else f"{_steps(row, phase):,}"
            own = [row.run, *("" if value is None else f"{value:g}" for value in (row.alpha, row.lr)), steps]
            measured = row.files.get("distill" if phase == "distill" else "finished", {})
            measured = measured | {"s_per_image": row.s_per_image}
            differing = differences(published, row, summary.params)
        texts = _texts(published, METRICS_A), _texts(measured, METRICS_A)
        pairs.append(Pair(published["row"], given, texts[0], row.run if row else None, own, texts[1], differing))
    return pairs


def source_b(summary: Summary) -> list[Pair]:
    """Return PyTorch against ONNX of source B, with the light student and the teacher of this sweep."""
    pairs, frames = [], summary.benchmark.get("conditions", {}).get("frames")
    for published in published_rows(SOURCE_B):
        arch = published["arch"]
        row = next((row for row in summary.runs if row.arch == arch), None) if arch else summary.teacher
        measured = {} if row is None else {name: getattr(row, name, None) for name in METRICS_B}
        own = ["", ""] if row is None else [row.run, f"{frames:,}" if frames else ""]
        texts = []
        for metrics in (published, measured):
            torch_ms, onnx_ms = metrics.get("torch_total_ms"), metrics.get("onnx_total_ms")
            ratio = float(torch_ms) / float(onnx_ms) if torch_ms and onnx_ms else None
            texts.append(_texts(metrics | {"ratio": ratio}, METRICS_B))
        given = [published["model"], str(SOURCE_B_FRAMES)]
        differing = ["data", "timing"] if row else []
        pairs.append(Pair("", given, texts[0], row.run if row else None, own, texts[1], differing))
    return pairs


def differences(published: dict[str, str], row: Row, params: Params | None) -> list[str]:
    """Return what is known to differ between a row of source A and the run `row`; empty where nothing is.

    The source does not give its batch size, crops, seed or machine, so the most that can be said is that all it gives
    is the same. Of the distillation loss it gives alpha alone: the usual one is taken for the same.
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
        settings = params.distill_settings(row.run)
        teachers = {other["arch"] for other in published_rows(SOURCE_A) if other["phase"] == TEACHER}
        found += ["teacher"] if params.teacher.described not in teachers else []
        found += ["method"] if settings.method != USUAL_METHOD else []
        found += ["temperature"] if settings.temperature != USUAL_TEMPERATURE else []
    if published["phase"] == "finetune":
        # "30,000 more with StepLR": the alpha and the rate are those of the first steps.
        further = params.finetune_params(row.run)
        found += ["finetune schedule"] if further.schedule != "step" else []
        found += ["finetune lr"] if further.lr not in (None, row.lr) else []
        of_both = (params.distill_settings(row.run).loss_weights, params.finetune_settings(row.run).loss_weights)
        found += ["finetune alpha"] if of_both[0] != of_both[1] else []
    return found


def _steps(row: Row, phase: str) -> int:
    return (row.steps or 0) + ((row.finetune_steps or 0) if phase == "finetune" else 0)


def _texts(metrics: dict, columns: dict[str, tuple[str, str]]) -> list[str]:
    values = [(metrics.get(name), form) for name, (_, form) in columns.items()]
    return [MISSING if value in (None, "") else format(float(value), form) for value, form in values]
