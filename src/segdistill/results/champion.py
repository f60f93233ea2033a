"""Which file of which student to ship: accuracy against latency, by one stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf

from segdistill.results.row import TEACHER, Row

# A share and not a number of points, so that the rule means the same at a mIoU of 0.05 as at one of 0.75.
KEPT_MEAN_IOU = 0.98
RULE = (
    f"the fastest file (p50, end to end) among those that keep at least {KEPT_MEAN_IOU:.0%} of the best val mIoU "
    "that any student's file reaches; of equally fast ones the more accurate"
)


@dataclass(frozen=True)
class ModelFile:
    """A model in the form it would be shipped in, scored and timed in that form.

    The teacher has no file of its own: it stands here with the mIoU of its check, and with its latency in float32 ONNX
    or, where it has several parts, in PyTorch.
    """

    run: str
    role: str
    precision: str  # float32 or int8
    mean_iou: float | None
    p50_ms: float | None
    mb: float | None
    on_front: bool = False

    @property
    def path(self) -> str:
        return f"models/runs/{self.run}/student{'.int8' if self.precision == 'int8' else ''}.onnx"

    def figures(self) -> dict:
        return asdict(self) | {"path": self.path, "rule": RULE}


def model_files(rows: Sequence[Row]) -> tuple[ModelFile, ...]:
    """The float32 and int8 files of all rows, those on the Pareto front of mIoU and latency marked."""
    files = []
    for row in rows:
        if row.role == TEACHER:
            _, p50_ms = row.timed() or (None, None)
            files.append(ModelFile(row.run, row.role, "float32", row.mean_iou, p50_ms, None))
            continue
        files.append(
            ModelFile(row.run, row.role, "float32", row.float32_mean_iou, row.onnx_float32_p50_ms, row.float32_mb)
        )
        if row.int8_mb is not None:
            files.append(ModelFile(row.run, row.role, "int8", row.int8_mean_iou, row.onnx_int8_p50_ms, row.int8_mb))
    front = pareto_front([(file.p50_ms, file.mean_iou) for file in files])
    return tuple(ModelFile(**(asdict(file) | {"on_front": on})) for file, on in zip(files, front, strict=True))


def pareto_front(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """For each (latency, accuracy): is none of the others at least as fast and as accurate, and better in one?

    A point with an unknown figure is not on the front and dominates none.
    """
    known = [point for point in points if None not in point]

    def dominated(latency: float, accuracy: float) -> bool:
        return any(l <= latency and a >= accuracy and (l, a) != (latency, accuracy) for l, a in known)

    return [None not in point and not dominated(*point) for point in points]


def choose_champion(rows: Sequence[Row]) -> ModelFile | None:
    """The file that RULE picks among the students and controls; None when no file has a mIoU.

    Whatever were faster and as accurate would be picked itself, so the pick is on the Pareto front of the students.
    """
    files = [file for file in model_files(rows) if file.role != TEACHER and file.mean_iou is not None]
    if not files:
        return None
    least = KEPT_MEAN_IOU * max(file.mean_iou for file in files)
    close = [file for file in files if file.mean_iou >= least]
    return min(close, key=lambda file: (inf if file.p50_ms is None else file.p50_ms, -file.mean_iou, file.mb or inf))
