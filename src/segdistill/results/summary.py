"""One line per model of the sweep, read from the files under metrics/, and the choice of the student to ship.

`row.py` says what a line holds, `champion.py` has the rule of the choice; `report` shows what is gathered
here, as a page and in the terminal.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file, read_json, write_json
from segdistill.core.provenance import settings_hash
from segdistill.formats.classes import ClassTable, Color
from segdistill.params.model import Params
from segdistill.results.champion import ModelFile, choose_champion, model_files
from segdistill.results.row import COLUMNS, CONTROL, STUDENT, TEACHER, Row
from segdistill.scoring.record import LEGEND, class_key

# What the evaluation of a finished model gives, under the same names in finetune.json and teacher.json.
SCORES = ("mean_loss", "overall_acc", "mean_acc", "freqw_acc", "mean_iou")


@dataclass(frozen=True)
class Summary:
    """All rows, the teacher first, then the runs in the order of params.yaml."""

    rows: tuple[Row, ...]
    files: tuple[ModelFile, ...]
    champion: ModelFile | None
    benchmark: dict  # benchmark.json as it is: conditions and networks
    class_colors: dict[str, Color] = field(default_factory=dict)  # by the keys of class_iou, as the pictures have them
    params: Params | None = None  # what the models were trained and scored with

    @property
    def teacher(self) -> Row | None:
        return next((row for row in self.rows if row.role == TEACHER), None)

    @property
    def runs(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if row.role != TEACHER)

    @property
    def best_student(self) -> Row | None:
        """The distilled run to look at: the champion's, or the most accurate one where a control is the champion."""
        if self.champion is not None and self.champion.role == STUDENT:
            return self.run(self.champion.run)
        scored = [row for row in self.runs if row.role == STUDENT and row.mean_iou is not None]
        return max(scored, key=lambda row: row.mean_iou, default=None)

    def run(self, name: str) -> Row:
        """The row of the run `name`."""
        return next(row for row in self.runs if row.run == name)


def of_rows(rows: Sequence[Row], benchmark: dict, params: Params | None = None) -> Summary:
    """The summary of `rows`: gains over the controls are worked out, the files compared and the champion chosen."""
    rows = _with_gains(rows)
    return Summary(rows, model_files(rows), choose_champion(rows), benchmark, params=params)


def summarise(params: Params, metrics: Path) -> Summary:
    """Gather the figures of the teacher and of every run in `params`.

    Raises:
        UserError: a metrics file is missing, or the benchmark does not know a run.
    """
    teacher, benchmark = _read(metrics / "teacher.json"), _read(metrics / "benchmark.json")
    rows = [_teacher_row(params, teacher, benchmark)]
    rows += [_run_row(params, run, metrics / "runs" / run, benchmark) for run in params.runs]
    return replace(of_rows(rows, benchmark, params), class_colors=_class_colors(metrics / "images" / LEGEND))


def _class_colors(legend: Path) -> dict[str, Color]:
    if not legend.is_file():
        return {}
    try:
        table = ClassTable.of_facts(read_json(legend))
    except UserError as error:
        raise UserError(f"{legend}: {error}; dvc repro writes it anew") from None
    return {class_key(name): color for name, color in zip(table.names, table.colors, strict=True)}


def row_key(params: Params, run: str, data_fingerprint: str) -> str:
    """A hash of everything that `run` was computed from: equal keys are the same experiment."""
    settings = params.distill_settings(run)
    facts = [run, settings.model_dump(mode="json")]
    facts += [params.finetune_params(run).model_dump(mode="json"), params.export_params(run).model_dump(mode="json")]
    facts.append(data_fingerprint)
    if settings.teacher != "none":
        facts += [params.teacher.model_dump(mode="json"), params.teacher_logits.model_dump(mode="json")]
    return settings_hash(*facts)


def write_summary(summary: Summary, metrics: Path) -> None:
    """Write summary.json (flat figures by run, as `dvc metrics diff` compares them) and summary.csv (one line each)."""
    value = {
        "champion": summary.champion.figures() if summary.champion else None,
        "teacher": summary.teacher.figures() if summary.teacher else None,
        "runs": {row.run: row.figures() for row in summary.runs},
    }
    write_json(metrics / "summary.json", value)
    with atomic_file(metrics / "summary.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.figures() for row in summary.rows)


def _read(path: Path) -> dict:
    try:
        return read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; dvc repro writes it") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); dvc repro writes it anew") from None


def _scores(figures: dict) -> dict:
    return {name: figures[name] for name in SCORES} | {"class_iou": figures["class_iou"]}


def _teacher_row(params: Params, figures: dict, benchmark: dict) -> Row:
    teacher = params.teacher
    # Of a given checkpoint nobody knows here how it was trained.
    trained = {} if teacher.checkpoints else {"lr": teacher.lr, "schedule": teacher.schedule, "steps": teacher.steps}
    return Row(
        run=TEACHER,
        role=TEACHER,
        arch=teacher.described,
        label_loss=teacher.label_loss,
        seed=None if teacher.checkpoints else params.seed,
        parameters=figures["parameters"],
        **trained,
        **_scores(figures),
        **_latencies(benchmark, TEACHER),
    )


def _run_row(params: Params, run: str, folder: Path, benchmark: dict) -> Row:
    settings = params.distill_settings(run)
    distilled, finetuned, exported = (_read(folder / f"{name}.json") for name in ("distill", "finetune", "export"))
    taught = settings.teacher != "none"
    float32, int8 = exported["float32"], exported.get("int8", {})
    return Row(
        run=run,
        role=STUDENT if taught else CONTROL,
        arch=settings.student,
        alpha=settings.alpha,
        lr=settings.lr,
        temperature=settings.temperature if taught else None,
        method=settings.method if taught else None,
        teacher=settings.teacher if taught else None,
        label_loss=settings.label_loss,
        schedule=settings.schedule,
        steps=settings.steps,
        finetune_steps=params.finetune_params(run).steps,
        seed=settings.seed,
        parameters=finetuned["parameters"],
        distilled_mean_iou=distilled["mean_iou"],
        # A control is trained before there need be a teacher, so only its export can tell how far it agrees with one.
        teacher_agreement=finetuned.get("teacher_agreement", exported["torch"].get("teacher_agreement")),
        float32_mean_iou=float32["mean_iou"],
        int8_mean_iou=int8.get("mean_iou"),
        float32_mb=float32["bytes"] / 1e6,
        int8_mb=int8["bytes"] / 1e6 if int8 else None,
        row_key=row_key(params, run, finetuned["data_fingerprint"]),
        **_scores(finetuned),
        **_latencies(benchmark, run, int8=bool(int8)),
    )


def _latencies(benchmark: dict, model: str, int8: bool = True) -> dict:
    if model not in benchmark["models"]:
        raise UserError(f"metrics/benchmark.json: has no figures of '{model}'; dvc repro benchmark measures them")
    timed = benchmark["networks"][benchmark["models"][model]]

    def figure(backend: str, name: str) -> float | None:
        return timed.get(backend, {}).get(f"end_to_end_{name}")

    mean_ms = figure("torch", "mean_ms")
    return {
        "torch_p50_ms": figure("torch", "p50_ms"),
        "torch_best_p50_ms": figure("torch_best", "p50_ms"),
        "onnx_float32_p50_ms": figure("onnx_float32", "p50_ms"),
        # Another run of the architecture may have an int8 file where this one has none.
        "onnx_int8_p50_ms": figure("onnx_int8", "p50_ms") if int8 else None,
        "s_per_image": None if mean_ms is None else mean_ms / 1000,
        "torch_total_ms": figure("torch", "total_ms"),
        "onnx_total_ms": figure("onnx_float32", "total_ms"),
    }


def _with_gains(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows, each run measured against its control."""
    controls = [row for row in rows if row.role == CONTROL]

    def measured(row: Row) -> Row:
        if row.role == TEACHER or not controls:
            return row
        control = _control_of(row, controls)
        known = row.mean_iou is not None and control.mean_iou is not None
        gain = row.mean_iou - control.mean_iou if known else None
        return replace(row, control=control.run, gain_over_vanilla=gain)

    return tuple(measured(row) for row in rows)


def _control_of(row: Row, controls: Sequence[Row]) -> Row:
    """The first control of the same network, or else the first one; a student's has its seed where there is one.

    A seed fixes initial weights and batches, so much of what chance does to a pair of one seed is the same for both.
    Controls of other seeds are measured against the first one, which shows what chance does.
    """
    alike = [control for control in controls if control.arch == row.arch] or controls
    paired = [control for control in alike if control.seed == row.seed and row.role == STUDENT]
    return (paired or alike)[0]
