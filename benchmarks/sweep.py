"""What a sweep of eight students costs with the teacher's one pass, against eight plain trainings (row 4).

A sweep is too long to run here, and it is a sum: its parts are measured in turn in one process and added up.

    sweep   = start-up + teacher crops * s + 8 * (start-up + steps * cached step)
    vanilla =                                8 * (start-up + steps * plain step)

A cached step does all that a plain one does, so it counts as no shorter: else noise would grow with the steps until a
sweep with a teacher seemed to cost less than one without.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

from benchmarks.our_loop import (
    STUDENT,
    TEACHER,
    OurLoop,
    next_steps,
    our_compute,
    random_teacher,
    student_settings,
)
from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.streets import ON_CPU, QUICK, STRIDE, streets_on_disk
from segdistill.data.sampling import BatchSampler
from segdistill.nets.device import TorchPredictor
from segdistill.teacher_logits.shards import logits_on_grid

RUNS, STEPS, VIEWS, MAX_RATIO = 8, 500, 8, 1.10
DATA_SETS = {"": ("CamVid's size", 330), "-cityscapes": ("Cityscapes", 2975)}  # suffix of the row: name, train frames
MANY_STEPS = 30_000  # of a run in the profile for Cityscapes
TEACHER_BATCH = 8  # crops per forward pass, as the profiles have it


class Costs(NamedTuple):
    """Seconds of the teacher per crop, of a plain and a cached step (per round, or one median), and of a start-up."""

    teacher_crop_s: np.ndarray
    plain_step_s: np.ndarray
    cached_step_s: np.ndarray
    start_s: float

    def median(self) -> Costs:
        """Return the same with one number for all rounds."""
        return Costs(*(np.median(part) for part in self))

    @property
    def cached_over_plain(self) -> float:
        """Return the time of a cached step over that of a plain one, at least 1."""
        return max(1.0, float(np.median(self.cached_step_s / self.plain_step_s)))

    def sweep_over_vanilla(self, crops: int, steps: int) -> np.ndarray:
        """Return the sweep's ratio when the teacher sees `crops` crops and every run makes `steps` steps."""
        steps_s = steps * self.plain_step_s
        sweep_s = self.start_s + crops * self.teacher_crop_s + RUNS * (self.start_s + steps_s * self.cached_over_plain)
        return sweep_s / (RUNS * (self.start_s + steps_s))

    def steps_for(self, ratio: float, crops: int) -> float:
        """Return the number of steps at which the ratio has fallen to `ratio`; infinite where it never does."""
        gained_s = RUNS * (ratio - self.cached_over_plain) * self.plain_step_s  # per step
        once_s = self.start_s + crops * self.teacher_crop_s + RUNS * (1 - ratio) * self.start_s
        return once_s / gained_s if gained_s > 0 else float("inf")


def views_drawn_by(frames: int, batch: int, steps: int) -> int:
    """Return how many views a run draws: `teacher_logits.limit_views_to` stores them; runs of one seed draw alike."""
    return int(BatchSampler(0, "distill", frames, VIEWS, batch, flip_probability=0.5, jitter=0.0).drawn(steps).sum())


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 4."""
    sizes = QUICK if quick else ON_CPU
    compute = our_compute()
    ours = OurLoop(streets_on_disk(sizes.frame_px, sizes.frames), sizes, compute, student_settings())
    costs = _costs(ours, steps=1, rounds=1, starts=1) if quick else _costs(ours, steps=3, rounds=15, starts=3)
    typical = costs.median()
    rows = [row for suffix in DATA_SETS for row in _rows(costs, suffix, sizes.batch)]
    conditions = {
        "student": STUDENT,
        "teacher": TEACHER,
        "crop_px": list(sizes.crop_px),
        "batch": sizes.batch,
        "runs": RUNS,
        "steps": STEPS,
        "views": VIEWS,
        **{name: round(float(value), 4) for name, value in typical._asdict().items()},
    }
    return conditions, rows


def _costs(ours: OurLoop, steps: int, rounds: int, starts: int) -> Costs:
    """Return the parts, measured in turn."""
    crops = np.asarray(ours.streets.split.images[:, : ours.sizes.crop_px[0], : ours.sizes.crop_px[1]])
    crops = np.resize(crops, (TEACHER_BATCH, *crops.shape[1:]))
    teacher = TorchPredictor(random_teacher(ours.compute), ours.compute)
    grid = tuple(side // STRIDE for side in ours.sizes.crop_px)
    taken_s = seconds_in_turn(
        {
            "teacher": lambda: logits_on_grid(teacher, crops, grid),
            "plain": next_steps(ours.job("plain"), steps),
            "cached": next_steps(ours.job("cached", teacher="views"), steps),
        },
        rounds,
    )
    per_step = (taken_s[kind] / steps for kind in ("plain", "cached"))
    return Costs(taken_s["teacher"] / TEACHER_BATCH, *per_step, _start_s(starts))


def _start_s(starts: int) -> float:
    """Return the seconds from the start of a process to where a training could begin, the median of a few."""
    taken_s = []
    for _ in range(starts):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import segdistill.student.run"], check=True)
        taken_s.append(time.perf_counter() - started)
    return float(np.median(taken_s))


def _rows(costs: Costs, suffix: str, batch: int) -> list[Row]:
    """Return the rows of one data set: the drawn views, all views, and the steps at which all views meet the target."""
    name, frames = DATA_SETS[suffix]
    typical, crops, drawn = costs.median(), frames * VIEWS, views_drawn_by(frames, batch, STEPS)
    steps = typical.steps_for(MAX_RATIO, crops)
    what = f"sweep of {RUNS} runs with the teacher's pass / {RUNS} vanilla runs, {STEPS} steps each, {name}"

    def passed(count: int, words: str) -> str:
        cost_steps = count * typical.teacher_crop_s / typical.plain_step_s
        return f"the pass over {words} costs as much as {cost_steps:,.0f} of the students' {RUNS * STEPS:,} steps"

    many = f"with {MANY_STEPS:,} steps each the ratio is {typical.sweep_over_vanilla(crops, MANY_STEPS):.3f}"
    rows = [
        ratio_row(
            f"4{suffix}",
            f"{what}, views as teacher_logits.limit_views_to stores them",
            costs.sweep_over_vanilla(drawn, STEPS),
            f"at most {MAX_RATIO:g}",
            passed(drawn, f"the {drawn:,} views that are drawn"),
        ),
        ratio_row(
            f"4-all{suffix}",
            f"{what}, all views; {passed(crops, f'{frames:,} frames x {VIEWS} views')}; {many}",
            costs.sweep_over_vanilla(crops, STEPS),
        ),
    ]
    if np.isfinite(steps):
        what = f"steps of each run from which the sweep over {name} costs at most {MAX_RATIO:g} with all views"
        rows.append(Row(f"4-steps{suffix}", what, int(np.ceil(steps)), None, "steps", None))
    return rows
