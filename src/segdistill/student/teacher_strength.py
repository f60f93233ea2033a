"""Warn, before a student trains, of a teacher that is not stronger than a control: there is little to learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.log import logger
from segdistill.params.model import Params
from segdistill.paths import METRICS, run_metrics


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
    controls = {}
    for name in params.students():
        if params.student(name).teacher == "none":
            finetuned, distilled = (run_metrics(name, metrics) / file for file in ("finetune.json", "distill.json"))
            last = _metrics_of(finetuned, data_fingerprint) or _metrics_of(distilled, data_fingerprint)
            controls[name] = _mean_ious(last)
    found = []
    for place, of_teacher in _mean_ious(teacher).items():
        known = {name: score for name, own in controls.items() if (score := own[place]) is not None}
        strongest = max(known, key=lambda name: known[name], default=None)
        if of_teacher is not None and strongest is not None and known[strongest] >= of_teacher:
            found.append(Weaker(strongest, place, known[strongest], of_teacher))
    return found


def _metrics_of(path: Path, data_fingerprint: str) -> dict[str, Any]:
    """Return a metrics file; an empty one where there is none that can be read, or where it is of other data."""
    try:
        found = read_json(path)
    except (OSError, UserError):  # a warning must not end a training
        return {}
    return found if found.get("data_fingerprint") == data_fingerprint else {}


def _mean_ious(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Return the mIoU by place; None where a metrics file has none."""
    return {"val": metrics.get("mean_iou"), "the unseen drives": metrics.get("unseen", {}).get("mean_iou")}
