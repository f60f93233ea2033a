"""Warn, before a student trains, of a teacher that is not stronger than a control: there is little to learn from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.log import logger
from segdistill.params.model import Params
from segdistill.paths import METRICS, run_metrics

PLACES = {"val": (), "the unseen drives": ("unseen",)}  # and where a metrics file has their mIoU


class Weaker(NamedTuple):
    """A control that scores at least as high as the teacher in some place, and both mIoU."""

    control: str
    place: str
    of_control: float
    of_teacher: float


def warn_of_weak_teacher(params: Params, run: str, teacher_sha256: str, data_fingerprint: str) -> None:
    """Log a warning where the teacher is not stronger than a control; `run` is about to learn from it.

    The control's metrics are those that are on disk: of this sweep, where it was trained first, or of the one before.
    No result depends on them.
    """
    for found in weaker_than_controls(params, METRICS, teacher_sha256, data_fingerprint):
        logger.warning(
            "distill/%s: the teacher is not stronger than the control %s: its mIoU on %s is %.1f%%, that of the "
            "control %.1f%%; train the teacher longer, start it from ImageNet, or name a better teacher.checkpoint",
            *(run, found.control, found.place, 100 * found.of_teacher, 100 * found.of_control),
        )


def weaker_than_controls(params: Params, metrics: Path, teacher_sha256: str, data_fingerprint: str) -> list[Weaker]:
    """Return for val and for the unseen drives the strongest control, where the teacher is not above it."""
    teacher = _metrics_of(metrics / "teacher.json", data_fingerprint)
    if teacher.get("weights_sha256") != teacher_sha256:  # of another teacher than that of the logits
        return []
    found = []
    for place, path in PLACES.items():
        scores = {name: _mean_iou(own, path) for name, own in _controls(params, metrics, data_fingerprint)}
        known = {name: score for name, score in scores.items() if score is not None}
        of_teacher, strongest = _mean_iou(teacher, path), max(known, key=lambda name: known[name], default=None)
        if of_teacher is not None and strongest is not None and known[strongest] >= of_teacher:
            found.append(Weaker(strongest, place, known[strongest], of_teacher))
    return found


def _controls(params: Params, metrics: Path, data_fingerprint: str) -> Iterator[tuple[str, dict]]:
    """Yield each control that was trained, with its last metrics."""
    for name in params.students():
        if params.student(name).teacher == "none":
            folder = run_metrics(name, metrics)
            files = (_metrics_of(folder / file, data_fingerprint) for file in ("finetune.json", "distill.json"))
            if own := next(filter(None, files), None):
                yield name, own


def _metrics_of(path: Path, data_fingerprint: str) -> dict[str, Any]:
    """Return a metrics file; an empty one where there is none that can be read, or where it is of other data."""
    try:
        found = read_json(path)
    except (OSError, UserError):  # a warning must not end a training
        return {}
    return found if found.get("data_fingerprint") == data_fingerprint else {}


def _mean_iou(metrics: dict[str, Any], path: tuple[str, ...]) -> float | None:
    found: Any = metrics
    for key in (*path, "mean_iou"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, float) else None
