"""What MLflow shows of each run, read from disk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.provenance import settings_hash
from segdistill.formats.curve import COLUMNS, read_curve
from segdistill.formats.header import read_header
from segdistill.params.model import Params
from segdistill.paths import run_metrics
from segdistill.results.summary import row_key
from segdistill.tracking.notes import student_note, teacher_note
from segdistill.tracking.view import run_colour

TEACHER, CURVE = "teacher", "curve"
COLOUR_TAG, NOTE_TAG = "mlflow.runColor", "mlflow.note.content"
_STEP_IMAGE = re.compile(r"(\d+)_step_(\d+)\.png")
# What a choice is made by, the most important first: MLflow begins its comparison of runs with the metric logged first.
# It draws a chart of every metric, so the others are in its artifacts, as files.
_SCORES = ("mean_iou", "mean_loss", "overall_acc", "mean_acc", "freqw_acc", "teacher_agreement", "parameters")
_LATENCIES = ("end_to_end_p50_ms", "end_to_end_p95_ms")


class Point(NamedTuple):
    """One row of a curve file: what was measured after `step`; empty cells are left out."""

    step: int
    values: dict[str, float]


class StepImage(NamedTuple):
    """The class map of one holdout frame after `step` and its truth; images of one `key` show the same frame."""

    key: str
    step: int
    path: Path
    truth: Path


class Row(NamedTuple):
    """One run as a row of MLflow: `key` changes with anything that makes it another run.

    MLflow draws a chart of every metric, in one section for each `GROUP/` that their names begin with, by alphabet. The
    names of points begin with `curve/`, and those of other groups sort after it, so that the curves come first. In a
    curve the steps of finetuning follow those of distilling.
    """

    run: str
    key: str
    params: dict[str, str]
    tags: dict[str, str]
    data: tuple[str, str]  # name and fingerprint
    metrics: dict[str, float] = {}
    points: tuple[Point, ...] = ()
    step_images: tuple[StepImage, ...] = ()
    files: tuple[tuple[str, Path], ...] = ()  # (folder of artifacts, file)
    started_s: float | None = None  # by the clock of the files, as time.time()
    ended_s: float | None = None
    is_training: bool = False
    is_finished: bool = False


def rows_on_disk(params: Params, metrics: Path) -> list[Row]:
    """Return a row for the teacher and for every run of `params` that has been distilled, with its metrics."""
    names = [name for name in (TEACHER, *params.runs) if result_files(metrics, name)[0].is_file()]
    return [row_on_disk(params, metrics, name) for name in names]


def result_files(metrics: Path, name: str) -> list[Path]:
    """Return the metrics files of the trainings of `name`, the first one first."""
    if name == TEACHER:
        return [metrics / "teacher.json"]
    return [run_metrics(name, metrics) / f"{phase}.json" for phase in ("distill", "finetune")]


def row_on_disk(params: Params, metrics: Path, name: str) -> Row:
    """Return the row of `name` with all that `metrics` holds of it."""
    first, *further = (_read(path) for path in result_files(metrics, name))
    row = row_of(params, name, first.get("data_fingerprint", ""))
    benchmark = _read(metrics / "benchmark.json")
    if name == TEACHER:
        row = with_phase(row, metrics / "teacher_curve.csv", metrics / "teacher_images")
        revision = _revision(metrics.parent / "models" / "teacher" / "teacher.safetensors")
        return row._replace(
            tags=row.tags | revision,
            metrics=_scores(first) | _latencies(benchmark, TEACHER),
            files=_artifacts(metrics, metrics / "images", metrics / "teacher.json"),
            ended_s=_mtime(metrics / "teacher.json"),
            is_finished=True,
        )
    folder, (finetuned,) = run_metrics(name, metrics), further
    for phase, offset_steps in phases(params, name).items():
        row = with_phase(row, folder / f"{phase}_curve.csv", folder / f"{phase}_images", offset_steps)
    export = _read(folder / "export.json")
    return row._replace(
        tags=row.tags | _revision(metrics.parent / "models" / "runs" / name / "distilled.safetensors"),
        metrics=_scores(finetuned)
        | _numbers(first, ("mean_iou",), "distilled")
        | _exported(export, finetuned)
        | _latencies(benchmark, name, int8=bool(export.get("int8")))
        | _gain(metrics, row),
        files=_artifacts(metrics, folder / "images", *sorted(folder.glob("*.json"))),
        ended_s=_mtime(folder / "finetune.json") or _mtime(folder / "distill.json"),
        is_finished=bool(finetuned),
    )


def phases(params: Params, run: str) -> dict[str, int]:
    """Return the phases of `run`, and how many steps come before each."""
    return {"distill": 0, "finetune": params.distill_settings(run).steps}


def row_of(params: Params, name: str, data_fingerprint: str) -> Row:
    """Return the row of `name` before anything is measured: its key, its params and its note."""
    official = {"synthetic": "synthetic city", "cityscapes": "cityscapes"}
    data = (official.get(params.data.source) or Path(params.data.root).name or "folder", data_fingerprint)
    if name == TEACHER:
        key = settings_hash(TEACHER, params.teacher.model_dump(mode="json"), params.seed, data_fingerprint)
        named, note = _teacher_params(params), teacher_note(params)
    else:
        key = row_key(params, name, data_fingerprint)
        named, note = _student_params(params, name), student_note(params, name)
    tags = {NOTE_TAG: note, COLOUR_TAG: run_colour(params, name)}
    return Row(name, key, {name: _text(value) for name, value in named.items()}, tags, data)


def with_phase(row: Row, curve: Path, images: Path, offset_steps: int = 0) -> Row:
    """Return `row` with the points of a curve file and the images of one training added, `offset_steps` later.

    Of two images of one frame after the same step the first one stays.
    """
    found = [
        Point(point["step"], {f"{CURVE}/{name}": point[name] for name in COLUMNS[1:] if point[name] is not None})
        for point in read_curve(curve, offset_steps)
    ]
    known = {(image.key, image.step) for image in row.step_images}
    added = [i for i in read_step_images(images, offset_steps) if (i.key, i.step) not in known]
    started_s = [row.started_s, *(_mtime(image.truth) for image in added), _mtime(curve)]
    return row._replace(
        points=(*row.points, *found),
        step_images=(*row.step_images, *added),
        started_s=min((time_s for time_s in started_s if time_s is not None), default=None),
    )


def read_step_images(folder: Path, offset_steps: int = 0) -> list[StepImage]:
    """Return the images that a training has saved in `folder`, by step; none where there is no folder."""
    found = []
    for path in folder.glob("*.png"):
        if match := _STEP_IMAGE.fullmatch(path.name):
            key = f"{CURVE}/frame {int(match[1])} - predicted and truth"
            found.append(StepImage(key, offset_steps + int(match[2]), path, folder / f"{match[1]}_truth.png"))
    return sorted(found, key=lambda image: (image.step, image.key))


def _student_params(params: Params, run: str) -> dict:
    settings, finetune = params.distill_settings(run), params.finetune_settings(run)
    taught, own = settings.teacher != "none", params.finetune_params(run)
    # Leave out what a control never reads, and what finetuning takes over from the first steps: it would only look
    # like one more difference between two rows.
    own_alpha = finetune.alpha if finetune.steps and taught and own.alpha is not None else None
    named = {
        "alpha": settings.alpha,
        "lr": settings.lr,
        "temperature": settings.temperature if taught else None,
        "method": settings.method if taught else None,
        "student": settings.student,
        "teacher": settings.teacher,
        "teacher_arch": params.teacher.described if taught else None,
        "schedule": settings.schedule,
        "steps": settings.steps,
        "finetune_steps": finetune.steps,
        "finetune_alpha": own_alpha,
        "finetune_lr": finetune.lr if finetune.steps and own.lr is not None else None,
        "batch_size": settings.batch_size,
        "crop": settings.crop_px,
        "seed": settings.seed,
    }
    return {name: value for name, value in named.items() if value is not None}


def _teacher_params(params: Params) -> dict:
    teacher = params.teacher
    if teacher.checkpoints:
        return {"teacher_arch": teacher.described, "checkpoint": ", ".join(teacher.checkpoints)}
    named = {name: getattr(teacher, name) for name in ("lr", "schedule", "steps", "batch_size")}
    return named | {"teacher_arch": teacher.described, "crop": teacher.crop_px, "seed": params.seed}


def _numbers(metrics: dict, names: Iterable[str], group: str) -> dict[str, float]:
    """Return those of `names` that `metrics` has a number of, as GROUP/NAME.

    Six digits of what is no count: MLflow's table cuts longer ones, and the file has them all.
    """
    found = {name: metrics[name] for name in names if isinstance(metrics.get(name), int | float)}
    return {
        f"{group}/{name}": float(f"{value:.6g}") if isinstance(value, float) else float(value)
        for name, value in found.items()
    }


def _scores(metrics: dict) -> dict[str, float]:
    return _numbers(metrics, _SCORES, "val")


def _exported(export: dict, finetuned: dict) -> dict[str, float]:
    found: dict[str, float] = {}
    for kind in ("float32", "int8"):
        if metrics := export.get(kind):
            found |= _numbers(metrics, ("mean_iou",), f"onnx_{kind}")
            found[f"onnx_{kind}/mb"] = round(metrics["bytes"] / 1e6, 3)
    # A control meets the teacher only when it is exported, so take from there what finetune did not measure.
    if finetuned and "teacher_agreement" not in finetuned:
        found |= _numbers(export.get("torch") or {}, ("teacher_agreement",), "val")
    return found


def _gain(metrics: Path, row: Row) -> dict[str, float]:
    """Return the gain of the run over its control, if the summary on disk is of this very row."""
    summarised = (_read(metrics / "summary.json").get("runs") or {}).get(row.run) or {}
    gain = summarised.get("gain_over_vanilla")
    return {"val/gain_over_vanilla": float(gain)} if gain is not None and summarised.get("row_key") == row.key else {}


def _latencies(benchmark: dict, model: str, int8: bool = True) -> dict[str, float]:
    """Return the latencies of `model`, end to end, as ENGINE/p50_ms and ENGINE/p95_ms.

    Latencies are of an architecture: without `int8` another run's int8 file was timed, not one of this run.
    """
    network = (benchmark.get("models") or {}).get(model)
    engines = (benchmark.get("networks") or {}).get(network) or {}
    return {
        name.replace("end_to_end_", ""): value
        for engine, metrics in engines.items()
        if metrics and (int8 or engine != "onnx_int8")
        for name, value in _numbers(metrics, _LATENCIES, engine).items()
    }


def _revision(weights: Path) -> dict[str, str]:
    """Return the commit that weights were trained by, as tags: code may change without the row becoming another one."""
    try:
        found = read_header(weights).git_revision
    except UserError:  # not pulled, or an ensemble
        found = None
    if not found or found == "unknown":
        return {}
    return {"git_revision": found, "mlflow.source.git.commit": found.removesuffix("-dirty")}


def _artifacts(metrics: Path, images: Path, *files: Path) -> tuple[tuple[str, Path], ...]:
    """Return the images of val that all rows share, the `images` of this row, and its metrics files."""
    shown = dict.fromkeys([*sorted((metrics / "images").glob("*.png")), *sorted(images.glob("*.png"))])
    return (*(("val", path) for path in shown), *(("metrics", path) for path in files))


def _mtime(path: Path) -> float | None:
    return path.stat().st_mtime if path.exists() else None


def _read(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
