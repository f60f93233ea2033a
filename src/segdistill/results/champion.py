"""Which file of which student to ship: accuracy against latency, by one stated rule, above a floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import median

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.results.row import TEACHER, Row

# A share and not a number of points, so that the rule means the same at a mIoU of 0.05 as at one of 0.75.
KEPT_MEAN_IOU = 0.98
RULE = (
    f"the fastest file (p50, end to end) among those that keep at least {KEPT_MEAN_IOU:.0%} of the best val mIoU "
    "that any student's file reaches; of equally fast ones the more accurate"
)
RULE_WHEN_BUSY = "the file of the best val mIoU, because the latencies of this sweep cannot be relied on"
FLOOR_OF_TEACHER = 0.5
# An idle machine keeps p95 within 1.2 times p50 here; beyond this, other work took the cores in many rounds.
MAX_SPREAD = 1.5


@dataclass(frozen=True)
class ModelFile:
    """A model in the form it would be shipped in, scored and timed in that form.

    The teacher has no file: it is given with the mIoU of its check, and with its latency in float32 ONNX or, where it
    has several parts, in PyTorch.
    """

    run: str
    role: str
    precision: str  # float32 or int8
    mean_iou: float | None
    p50_ms: float | None
    mb: float | None
    on_front: bool = False

    @property
    def score(self) -> float:
        """Return the val mIoU of a file that has one, as the champion does."""
        assert self.mean_iou is not None
        return self.mean_iou

    @property
    def latency_ms(self) -> float:
        """Return the p50 of a file that was timed."""
        assert self.p50_ms is not None
        return self.p50_ms

    @property
    def path(self) -> str:
        return f"models/runs/{self.run}/student{'.int8' if self.precision == 'int8' else ''}.onnx"


@dataclass(frozen=True)
class Floor:
    """The val mIoU below which no file is shipped, and what it is, in words."""

    mean_iou: float
    reason: str


def model_files(rows: Sequence[Row]) -> tuple[ModelFile, ...]:
    """Return the float32 and int8 files of all rows, those on the Pareto front of mIoU and latency marked."""
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
    return tuple(replace(file, on_front=on) for file, on in zip(files, front, strict=True))


def pareto_front(points: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Return for each (latency, accuracy) whether no other is at least as fast and as accurate, and better in one.

    A point with an unknown value is not on the front and dominates none.
    """
    known = [(latency, accuracy) for latency, accuracy in points if latency is not None and accuracy is not None]

    def is_on_front(latency: float | None, accuracy: float | None) -> bool:
        if latency is None or accuracy is None:
            return False
        return not any(l <= latency and a >= accuracy and (l, a) != (latency, accuracy) for l, a in known)

    return [is_on_front(*point) for point in points]


def floor_of(rows: Sequence[Row], baseline: float | None = None, minimum: float = 0.0) -> Floor:
    """Return the highest of three floors: `minimum`, half of the teacher's mIoU, and `baseline`, as far as known.

    baseline is the mIoU of predicting the most frequent class of val for every pixel.
    """
    floors = [Floor(minimum, "report.min_mean_iou")]
    for row in rows:
        if row.role == TEACHER and row.mean_iou is not None:
            floors.append(Floor(FLOOR_OF_TEACHER * row.mean_iou, "half of the teacher's"))
    if baseline is not None:
        floors.append(Floor(baseline, "that of predicting the most frequent class everywhere"))
    return max(floors, key=lambda floor: floor.mean_iou)


def why_busy(benchmark: dict) -> str | None:
    """Return why the latencies cannot be relied on, in words; None where nothing speaks against them."""
    conditions = benchmark.get("conditions", {})
    # At the end, when the benchmark itself is most of the load. Threads of others that have cores to spare do no harm.
    load, cores = conditions.get("load_1min_after"), conditions.get("cpus")
    if load is not None and cores and load > 1.5 * cores:
        return f"the machine was busy while they were taken: load {load:.1f} for {cores} cores"
    spreads = [
        timed["end_to_end_p95_ms"] / timed["end_to_end_p50_ms"]
        for network in benchmark.get("networks", {}).values()
        for timed in network.values()
        if timed.get("end_to_end_p50_ms") and timed.get("end_to_end_p95_ms")
    ]
    if spreads and median(spreads) > MAX_SPREAD:
        return f"they vary too much from round to round: p95 is {median(spreads):.1f} times p50"
    return None


def choose_champion(rows: Sequence[Row], floor: Floor | None = None, busy: bool = False) -> ModelFile | None:
    """Return the file that the rule picks among students and controls; None when no file is above the floor.

    A file that were faster and as accurate would be picked instead, so the pick is on the Pareto front of the students.
    """
    files = [file for file in model_files(rows) if file.role != TEACHER and file.mean_iou is not None]
    if floor is not None:
        files = [file for file in files if file.score >= floor.mean_iou]
    if not files:
        return None
    best = max(file.score for file in files)
    close = [file for file in files if file.score >= (best if busy else KEPT_MEAN_IOU * best)]
    return min(close, key=lambda file: (inf if file.p50_ms is None else file.p50_ms, -file.score, file.mb or inf))


def champion_path(metrics: Path) -> Path:
    """Return the file to ship, by the summary of the last report.

    Raises:
        UserError: there is no summary, it names no file, or the file is not there.
    """
    summary = metrics / "summary.json"
    otherwise = "name a file or a run with --model, or run: dvc repro"
    try:
        champion = read_json(summary)["champion"]
        path = None if champion is None else Path(champion["path"])
    except FileNotFoundError:
        raise UserError(f"{summary}: no such file; {otherwise}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{summary}: damaged; {otherwise}") from None
    if path is None:
        raise UserError(f"{summary}: recommends no student; {otherwise}")
    if not path.is_file():
        raise UserError(f"{path}: no such file, though {summary} says to ship it; {otherwise}")
    return path
