"""Whether distilling helped: runs of one setting over several seeds, each against the control of its seed.

The 95% interval of a gain. Two things are drawn by chance: the seeds, and the val frames. Frames of one city or
recording resemble one another, so groups of frames count, not frames. Seeds and groups are crossed: every seed is
scored on every group. The variance of the gain, which is the mean over seeds of the paired difference in val mIoU, is
estimated as

    variance between seeds / seeds + jackknife variance over groups,

where the jackknife leaves out one group at a time and computes the mIoU of the others again from their pixel counts.
It is the two-way clustered variance of Cameron, Gelbach and Miller (Robust inference with multiway clustering, Journal
of Business & Economic Statistics 29(2), 2011) without the subtracted interaction term, so it errs on the safe side. As
they advise for few clusters, the quantile is Student's t with (the smaller number of clusters - 1) degrees of freedom.
With few seeds or few groups the interval is wide, and says so rightly.

Of one or two groups the record has stretches of consecutive frames in place of the groups: the interval then covers
the frames, and says nothing about how drives differ.

Where there are unseen drives (data.unseen_groups) a gain has two such intervals, and the one on these drives decides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev, variance

import numpy as np

from segdistill.results.row import CONTROL, GAIN, STUDENT, TEACHER, UNSEEN_GAIN, Row

# 97.5% quantiles of Student's t for 1, 2, 3, ... degrees of freedom; 30 and more are taken as 30, which is wider.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

_RECIPE_COLUMNS = ("lr", "label_loss", "schedule", "steps", "finetune_steps")

GroupCounts = Mapping[str, np.ndarray]  # int64 (3, C) by group: pixels hit, of the class, and predicted


@dataclass(frozen=True)
class ValGroups:
    """How many groups of frames val has, and how many of them train has too; None where the metrics do not say.

    unseen is the number of groups that are in no split but their own.
    """

    count: int | None = None
    in_train: int | None = None
    unseen: int = 0


@dataclass(frozen=True)
class Gain:
    """By how much the students of a setting are above the controls of their seeds, as fractions of mIoU.

    low and high bound the 95% interval; None with fewer than two seeds. groups is 1 where the frames could not be
    taken into account: the interval is then over seeds alone. other_recipe says what of the recipe differs between
    students and controls: "" where nothing does, and the gain is that of the teacher alone.
    """

    mean: float
    seeds: int
    groups: int
    low: float | None = None
    high: float | None = None
    other_recipe: str = ""

    @property
    def verdict(self) -> str:
        """Return "helped", "hurt", "no difference" (the interval holds 0), "one seed", or "other recipe"."""
        if self.other_recipe:
            return "other recipe"
        if self.low is None or self.high is None:
            return "one seed"
        return "helped" if self.low > 0 else "hurt" if self.high < 0 else "no difference"


@dataclass(frozen=True)
class Setting:
    """Runs that differ by seed alone. mean_iou is the mean over seeds, spread the standard deviation over seeds."""

    name: str
    rows: tuple[Row, ...]
    gain: Gain | None = None  # on val
    unseen_gain: Gain | None = None  # on the unseen drives

    @property
    def claim(self) -> Gain | None:
        """Return the gain that a claim rests on: that on the unseen drives, where there are any."""
        return self.unseen_gain or self.gain

    @property
    def role(self) -> str:
        return self.rows[0].role

    @property
    def arch(self) -> str:
        return self.rows[0].arch

    @property
    def mean_iou(self) -> float | None:
        known = self._known()
        return mean(known) if known else None

    @property
    def spread(self) -> float | None:
        known = self._known()
        return stdev(known) if len(known) > 1 else None

    @property
    def seeds(self) -> int:
        return len(self._known())

    def _known(self) -> list[float]:
        return [row.mean_iou for row in self.rows if row.mean_iou is not None]


def group_settings(
    rows: Sequence[Row],
    counts: Mapping[str, GroupCounts] | None = None,
    unseen_counts: Mapping[str, GroupCounts] | None = None,
) -> tuple[Setting, ...]:
    """Return the students and controls by setting, in the order of their first runs, with the gains of the students.

    `counts` are the pixel counts of the runs by group of val frames, `unseen_counts` by unseen drive.
    """
    by_setting: dict[tuple, list[Row]] = {}
    for row in rows:
        if row.role != TEACHER:
            # A second run of the same seed is another setting: something that no column shows differs.
            same = by_setting.setdefault(_setting_of(row), [])
            if row.seed in [other.seed for other in same]:
                by_setting[(*_setting_of(row), row.run)] = [row]
            else:
                same.append(row)
    names, settings = set(), []
    for members in by_setting.values():
        name = _shared_name([row.run for row in members])
        name = members[0].run if name in names else name
        names.add(name)
        gain = unseen_gain = None
        if members[0].role == STUDENT:
            gain = _gain(members, rows, GAIN, counts or {})
            unseen_gain = _gain(members, rows, UNSEEN_GAIN, unseen_counts or {})
        settings.append(Setting(name, tuple(members), gain, unseen_gain))
    return tuple(settings)


def interval(differences: Sequence[float], without_group: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% interval of the mean of paired differences; None with fewer than two seeds.

    Args:
        differences: one for each seed, on all frames.
        without_group: the mean over seeds with one group of frames left out, for each group; fewer than two say
            that the groups are not known, and the interval is over seeds alone.
    """
    seeds, groups = len(differences), len(without_group)
    if seeds < 2:
        return None
    between_seeds = variance(differences) / seeds
    between_groups, fewest = 0.0, seeds
    if groups > 1:
        between_groups = (groups - 1) / groups * sum((one - mean(without_group)) ** 2 for one in without_group)
        fewest = min(seeds, groups)
    half = T_975[min(fewest - 1, len(T_975)) - 1] * sqrt(between_seeds + between_groups)
    return mean(differences) - half, mean(differences) + half


def _gain(
    members: Sequence[Row], rows: Sequence[Row], difference: str, counts: Mapping[str, GroupCounts]
) -> Gain | None:
    """Return the gain over the controls of the same network and seed; None where no member has one.

    `difference` is the field of a row that holds its difference to its control.
    """
    controls = {row.run: row for row in rows if row.role == CONTROL}
    pairs: list[tuple[Row, Row]] = []
    differences: list[float] = []
    for row in members:
        control, found = controls.get(row.control or ""), getattr(row, difference)
        if control is None or control.arch != row.arch or found is None:
            continue
        if control.seed == row.seed or len(members) == 1:
            pairs.append((row, control))
            differences.append(found)
    if not pairs:
        return None
    without = _without_each_group([(counts.get(row.run, {}), counts.get(control.run, {})) for row, control in pairs])
    bounds = interval(differences, without) if all(row.seed == control.seed for row, control in pairs) else None
    low, high = bounds or (None, None)
    other_recipe = next(filter(None, (_other_recipe(row, control) for row, control in pairs)), "")
    return Gain(mean(differences), len(pairs), max(1, len(without)), low, high, other_recipe)


def _other_recipe(row: Row, control: Row) -> str:
    """Return how a control was trained otherwise than its student, as "lr 0.001 against 0.01"; "" for the same way.

    Of what has no column (augmentation, optimizer, initial weights ...) it says "other keys of distill or finetune".
    """
    if row.recipe is None or control.recipe is None or row.recipe == control.recipe:
        return ""
    both = ((name, getattr(row, name), getattr(control, name)) for name in _RECIPE_COLUMNS)
    differing = [f"{name} {own} against {other}" for name, own, other in both if own != other]
    return ", ".join(differing) or "other keys of distill or finetune"


def _without_each_group(pairs: Sequence[tuple[GroupCounts, GroupCounts]]) -> list[float]:
    """Return the mean difference in mIoU over the pairs with each group left out; nothing where counts are missing."""
    names = list(pairs[0][0])
    if len(names) < 2 or any(list(counts) != names for pair in pairs for counts in pair):
        return []
    found = []
    for left_out in names:
        differences = []
        for pair in pairs:
            others = (np.sum([kept for name, kept in counts.items() if name != left_out], axis=0) for counts in pair)
            student, control = map(_mean_iou, others)
            if student is None or control is None:  # the other groups have no labelled pixel
                return []
            differences.append(student - control)
        found.append(mean(differences))
    return found


def _mean_iou(counts_3C: np.ndarray) -> float | None:
    hits, truth, predicted = counts_3C.astype(np.float64)
    union = truth + predicted - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else None


def _setting_of(row: Row) -> tuple:
    settings = (
        row.role,
        row.arch,
        row.alpha,
        row.label_weight,
        row.distill_weight,
        row.feature_weight,
        row.lr,
        row.temperature,
        row.method,
        row.teacher,
        row.label_loss,
    )
    return (*settings, row.schedule, row.steps, row.finetune_steps, row.setting)


def _shared_name(runs: Sequence[str]) -> str:
    """Return what the names of `runs` have in common: a03 for a03-s0 and a03-s1."""
    shared = os.path.commonprefix(list(runs))
    if shared in runs:
        return shared
    return shared.rstrip("0123456789").removesuffix("-seed").removesuffix("-s").rstrip("-") or runs[0]
