"""What MLflow shows of each run, read from disk: no word here of how it gets there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.provenance import settings_hash
from segdistill.formats.curve import COLUMNS, read_curve
from segdistill.formats.header import read_header
from segdistill.params.model import Params
from segdistill.results.summary import row_key
from segdistill.tracking.notes import student_note, teacher_note
from segdistill.tracking.view import run_colour

TEACHER, COLOUR_TAG = "teacher", "mlflow.runColor"
_STEP_PICTURE = re.compile(r"(\d+)_(?:truth|step_(\d+))\.png")
CURVES = COLUMNS[1:]


class Point(NamedTuple):
    """One row of a curve file: what was measured after `step`; empty cells are left out."""

    step: int
    values: dict[str, float]


class StepPicture(NamedTuple):
    """A picture of what was there after `step`; those of one name are stages of one thing."""

    name: str
    step: int
    path: Path


class Row(NamedTuple):
    """One run as a row: `key` changes with anything that makes it another run."""

    run: str
    key: str
    params: dict[str, str]
    tags: dict[str, str]
    data: tuple[str, str]  # name and fingerprint
    metrics: dict[str, float] = {}
    curves: dict[str, Path] = {}  # by phase
    step_pictures: dict[str, Path] = {}  # folders, by phase
    pictures: tuple[Path, ...] = ()
    finished: bool = False


def rows_on_disk(params: Params, metrics: Path) -> list[Row]:
    """The teacher and every run of params.runs that has been distilled, with all that `metrics` holds of them."""
    benchmark = _read(metrics / "benchmark.json")
    shared = tuple(sorted((metrics / "images").glob("*.png")))
    rows = []
    teacher = _read(metrics / "teacher.json")
    if teacher:
        row = row_of(params, TEACHER, teacher.get("data_fingerprint", ""))
        curve = metrics / "teacher_curve.csv"
        rows.append(
            row._replace(
                tags=row.tags | _revision(teacher, metrics, "teacher/teacher"),
                metrics=_figures(teacher) | _latencies(benchmark, TEACHER),
                curves={"train": curve} if curve_points(curve) else {},
                step_pictures={"train": metrics / "teacher_images"},
                pictures=shared,
                finished=True,
            )
        )
    return rows + [row for run in params.runs if (row := _student_row(params, metrics, run, benchmark, shared))]


def _student_row(params: Params, metrics: Path, run: str, benchmark: dict, shared: tuple[Path, ...]) -> Row | None:
    folder = metrics / "runs" / run
    distilled, finetuned = _read(folder / "distill.json"), _read(folder / "finetune.json")
    if not distilled:
        return None
    row = row_of(params, run, distilled.get("data_fingerprint", ""))
    curves = {phase: folder / f"{phase}_curve.csv" for phase in ("distill", "finetune")}
    export = _read(folder / "export.json")
    return row._replace(
        tags=row.tags | _revision(finetuned or distilled, metrics, f"runs/{run}/distilled"),
        # In this order, because a page that compares runs begins with the first figure.
        metrics=_figures({name: finetuned.get(name) for name in ("mean_iou",)})
        | {f"distilled_{name}": value for name, value in _figures(distilled, classes=False).items()}
        | _figures(finetuned)
        | _exported(export, finetuned)
        | _latencies(benchmark, run, int8=bool(export.get("int8")))
        | _gain(metrics, row),
        curves={phase: path for phase, path in curves.items() if curve_points(path)},
        step_pictures={phase: folder / f"{phase}_images" for phase in curves},
        pictures=(*shared, *sorted((folder / "images").glob("*.png"))),
        finished=bool(finetuned),
    )


def row_of(params: Params, run: str, data_fingerprint: str) -> Row:
    """The row of `run` before anything is measured: its key, its params and what it says about itself."""
    official = {"synthetic": "synthetic city", "cityscapes": "cityscapes"}
    data = (official.get(params.data.source) or Path(params.data.root).name or "folder", data_fingerprint)
    if run == TEACHER:
        key = settings_hash(TEACHER, params.teacher.model_dump(mode="json"), params.seed, data_fingerprint)
        named, note = _teacher_params(params), teacher_note(params)
    else:
        key = row_key(params, run, data_fingerprint)
        named, note = _student_params(params, run), student_note(params, run)
    named |= {"data_fingerprint": data_fingerprint}
    tags = {"mlflow.note.content": note, COLOUR_TAG: run_colour(params, run)}
    return Row(run, key, {name: _text(value) for name, value in named.items()}, tags, data)


def curve_points(path: Path) -> list[Point]:
    """Return the points of a curve file without its empty cells; none where there is no file."""
    return [
        Point(point["step"], {name: value for name, value in point.items() if name != "step" and value is not None})
        for point in read_curve(path)
    ]


def read_step_pictures(folder: Path) -> list[StepPicture]:
    """The pictures that a training has left in `folder`, in the order of their steps; none where there is no folder."""
    found = []
    for path in folder.glob("*.png"):
        if match := _STEP_PICTURE.fullmatch(path.name):
            name = f"holdout frame {int(match[1])} {'predicted' if match[2] else 'truth'}"
            found.append(StepPicture(name, int(match[2] or 0), path))
    return sorted(found, key=lambda picture: (picture.step, picture.name))


def _student_params(params: Params, run: str) -> dict:
    settings = params.distill_settings(run)
    finetune = params.finetune_settings(run)
    finetune_steps = finetune.steps
    taught, own = settings.teacher != "none", params.finetune_params(run)
    # What a control never reads is left empty, and so is what the further steps take over from the first ones: it would
    # only look like one more difference between two rows.
    return {
        "alpha": settings.alpha,
        "lr": settings.lr,
        "temperature": settings.temperature if taught else "-",
        "method": settings.method if taught else "-",
        "student": settings.student,
        "teacher": settings.teacher,
        "teacher_arch": params.teacher.described if taught else "-",
        "schedule": settings.schedule,
        "steps": settings.steps,
        "finetune_steps": finetune_steps,
        "finetune_alpha": finetune.alpha if finetune_steps and taught and own.alpha is not None else "-",
        "finetune_lr": finetune.lr if finetune_steps and own.lr is not None else "-",
        "batch_size": settings.batch_size,
        "crop": settings.crop_px,
        "seed": settings.seed,
    }


def _teacher_params(params: Params) -> dict:
    teacher = params.teacher
    if teacher.checkpoints:
        return {"teacher_arch": teacher.described, "checkpoint": ", ".join(teacher.checkpoints)}
    names = ("lr", "schedule", "steps", "batch_size")
    named = {name: getattr(teacher, name) for name in names}
    return named | {"teacher_arch": teacher.described, "crop": teacher.crop_px, "seed": params.seed}


def _figures(figures: dict, classes: bool = True) -> dict[str, float]:
    """The plain numbers of a metrics file, class IoUs as class_iou_NAME; an undefined figure is left out."""
    # Six digits of what is no count: MLflow's table cuts longer ones, and the file has them all.
    by_class = (figures.get("class_iou") or {}) if classes else {}
    named = figures | {f"class_iou_{name}": iou for name, iou in by_class.items()}
    return {
        name: float(f"{value:.6g}") if isinstance(value, float) else float(value)
        for name, value in named.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _exported(export: dict, finetuned: dict) -> dict[str, float]:
    figures = {
        f"onnx_{kind}_{name}": value
        for kind in ("float32", "int8")
        for name, value in _figures(export.get(kind) or {}, classes=False).items()
    }
    sizes = {name: value for name, value in figures.items() if name.endswith("_bytes")}
    figures |= {name.replace("_bytes", "_mb"): round(value / 1e6, 3) for name, value in sizes.items()}
    # A control meets the teacher only when it is exported: what finetune did not measure is taken from here.
    torch = _figures(export.get("torch") or {}, classes=False)
    return figures | {name: value for name, value in torch.items() if finetuned and name not in finetuned}


def _gain(metrics: Path, row: Row) -> dict[str, float]:
    """What the run is better than its control, if the summary on disk is of this very row."""
    summed_up = (_read(metrics / "summary.json").get("runs") or {}).get(row.run) or {}
    gain = summed_up.get("gain_over_vanilla")
    return {"gain_over_vanilla": float(gain)} if gain is not None and summed_up.get("row_key") == row.key else {}


def _latencies(benchmark: dict, model: str, int8: bool = True) -> dict[str, float]:
    """End to end as BACKEND_p50_ms and so on, the net alone as BACKEND_forward_p50_ms.

    Latencies are of an architecture: without `int8` another run's int8 file was timed, not one of this run.
    """
    network = (benchmark.get("models") or {}).get(model)
    backends = (benchmark.get("networks") or {}).get(network) or {}
    return {
        f"{backend}_{name.removeprefix('end_to_end_')}": value
        for backend, figures in backends.items()
        for name, value in _figures(figures or {}).items()
        if int8 or backend != "onnx_int8"
    }


def _revision(figures: dict, metrics: Path, weights: str) -> dict[str, str]:
    """The commit that a result was computed by, as tags: code may change without the run becoming another one."""
    try:
        found = read_header(metrics.parent / "models" / f"{weights}.safetensors").git_revision
    except UserError:  # not pulled, or an ensemble
        found = None
    if not found or found == "unknown":
        return {}
    return {"git_revision": found, "mlflow.source.git.commit": found.removesuffix("-dirty")}


def _read(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
