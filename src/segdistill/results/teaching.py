"""The teacher next to the control, by class: where it is below, a student has nothing to learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import NamedTuple

from segdistill.results.gains import Setting
from segdistill.results.row import CONTROL
from segdistill.results.summary import Summary


class Compared(NamedTuple):
    """The IoU of one class, as fractions; None where it is undefined or not measured."""

    name: str
    teacher: float | None
    control: float | None
    views: float | None  # of the teacher, on what students learn from

    @property
    def difference(self) -> float | None:
        """Return by how much the teacher is above the control on val."""
        return None if self.teacher is None or self.control is None else self.teacher - self.control

    @property
    def below(self) -> bool:
        """Return whether the teacher is below the control on val."""
        return self.difference is not None and self.difference < 0

    @property
    def below_on_views(self) -> bool:
        """Return whether the teacher has less on the views than the control has on val."""
        return self.views is not None and self.control is not None and self.views < self.control


def strongest_control(summary: Summary) -> Setting | None:
    """Return the control, all its seeds put together, of the highest val mIoU."""
    controls = [one for one in summary.settings if one.role == CONTROL and one.mean_iou is not None]
    return max(controls, key=lambda one: one.mean_iou or 0.0, default=None)


def compare_classes(summary: Summary) -> list[Compared]:
    """Return the teacher and the strongest control by class; nothing without either."""
    teacher, control = summary.teacher, strongest_control(summary)
    if teacher is None or control is None:
        return []
    on_views = learned_from(summary).get("class_iou", {})
    found = []
    for name, iou in teacher.class_iou.items():
        known = [value for row in control.rows if (value := row.class_iou.get(name)) is not None]
        found.append(Compared(name, iou, mean(known) if known else None, on_views.get(name)))
    return found


def learned_from(summary: Summary) -> Mapping:
    """Return the metrics of the teacher on what students learn from, of the first kind for which logits are stored."""
    return next((found for found in summary.learned_from.values() if found.get("crops")), {})
