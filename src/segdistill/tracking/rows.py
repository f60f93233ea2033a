"""What MLflow shows of each run, read from disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.provenance import settings_hash
from segdistill.formats.curve import COLUMNS, read_curve
from segdistill.formats.header import read_header
from segdistill.params.model import WEIGHT_KEYS, Params
from segdistill.paths import run_metrics
from segdistill.results import row as results
from segdistill.results import summary
from segdistill.results.row import METRICS, TEACHER, row_key
from segdistill.tracking.notes import student_note, teacher_note
from segdistill.tracking.view import run_colour

CURVE = "curve"
COLOUR_TAG, NOTE_TAG = "mlflow.runColor", "mlflow.note.content"
_STEP_IMAGE = re.compile(r"(\d+)_step_(\d+)\.png")
# The group of MLflow's metrics by the source of a declared one; those of a latency are named after the engine.
_GROUPS = {
    "finished": "val",
    "distill": "distilled",
    "export.float32": "onnx_float32",
    "export.int8": "onnx_int8",
    "export.int8.unseen": "onnx_int8/unseen",
}
# Other units and sums of the latencies that are logged: MLflow draws a chart of every metric.
_NOT_LOGGED = ("s_per_image", "torch_total_ms", "onnx_total_ms")


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
    """Return a row for the teacher and for every run of `params` that has been distilled, with its metrics.

    Results of other settings than those of `params` are left out: MLflow would keep metrics with the wrong settings.
    """
    return [_row(params, metrics, result) for result in summary.rows_on_disk(params, metrics) if not result.is_stale]


def _row(params: Params, metrics: Path, result: results.Row) -> Row:
    first = result.files["finished" if result.run == TEACHER else "distill"]
    row = row_of(params, result.run, first.get("data_fingerprint", ""))
    # MLflow's page that compares runs draws the first metric.
    logged: dict[str | None, int | float | None] = {"val/mean_iou": result.mean_iou}
    logged |= {_logged_name(one): getattr(result, one.name) for one in METRICS if one.sources}
    logged |= {"val/gain_over_vanilla": result.gain_over_vanilla}
    logged |= {"unseen/gain_over_vanilla": result.unseen_gain_over_vanilla}
    # Six digits of what is no count: MLflow's table cuts longer ones, and the file has them all.
    numbers = {
        name: float(f"{value:.6g}") if isinstance(value, float) else float(value)
        for name, value in logged.items()
        if name is not None and value is not None
    }
    row = row._replace(metrics=numbers, is_finished=result.is_finished)
    models = metrics.parent / "models"
    if result.run == TEACHER:
        row = with_phase(row, metrics / "teacher_curve.csv", metrics / "teacher_images")
        return row._replace(
            tags=row.tags | _revision(models / "teacher" / "teacher.safetensors"),
            files=_artifacts(metrics, metrics / "images", metrics / "teacher.json"),
            ended_s=_mtime(metrics / "teacher.json"),
        )
    folder = run_metrics(result.run, metrics)
    for phase, offset_steps in phases(params, result.run).items():
        row = with_phase(row, folder / f"{phase}_curve.csv", folder / f"{phase}_images", offset_steps)
    return row._replace(
        tags=row.tags | _revision(models / "runs" / result.run / "distilled.safetensors"),
        files=_artifacts(metrics, folder / "images", *sorted(folder.glob("*.json"))),
        ended_s=_mtime(folder / "finetune.json") or _mtime(folder / "distill.json"),
    )


def _logged_name(metric: results.Metric) -> str | None:
    """Return the name of a declared metric in MLflow, GROUP/NAME after its source; None for one that is not logged."""
    place, _, name = metric.sources[0].rpartition(".")
    if metric.name in _NOT_LOGGED:
        return None
    name = "mb" if name == "bytes" else name.removeprefix("end_to_end_")
    return f"{_GROUPS.get(place) or place.rpartition('.')[2]}/{name}"


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
    further = {
        f"finetune_{key}": getattr(finetune, key)
        if finetune.steps and taught and getattr(own, key) is not None
        else None
        for key in WEIGHT_KEYS
    }
    named = {
        **{key: getattr(settings, key) for key in WEIGHT_KEYS},
        "lr": settings.lr,
        "temperature": settings.temperature if taught else None,
        "method": settings.method if taught else None,
        "student": settings.network,
        "teacher": settings.teacher,
        "teacher_arch": params.teacher.described if taught else None,
        "schedule": settings.schedule,
        "steps": settings.steps,
        "finetune_steps": finetune.steps,
        **further,
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


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
