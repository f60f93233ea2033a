"""Gains over seeds: pairs, intervals by hand, their coverage by simulation, and what settings are put together."""

from __future__ import annotations

import numpy as np
import pytest

from segdistill.results.gains import T_975, group_settings, interval
from segdistill.results.summary import with_gains
from support.rows import one


def counts(*right_px: int, of: int = 100) -> dict[str, np.ndarray]:
    """Pixel counts of groups of one class, `of` pixels each, of which so many are right; the rest become a second."""
    return {
        f"city{number}": np.array([[right, 0], [of, 0], [right, of - right]], np.int64)
        for number, right in enumerate(right_px)
    }


GROUPS = {"v": (50, 50, 50), "a": (90, 20, 70)}  # right pixels of a control and a student in three drives


def settings_of(students: list[float], controls: list[float], **options):
    rows = [one(f"v-s{seed}", miou, role="control", seed=seed) for seed, miou in enumerate(controls)]
    rows += [one(f"a-s{seed}", miou, seed=seed) for seed, miou in enumerate(students)]
    return group_settings(with_gains(rows), **options)


def test_a_student_is_measured_against_the_control_that_was_trained_alike() -> None:
    rows = [one(f"v{recipe}", 0.5, role="control", seed=0, recipe=recipe) for recipe in "xy"]
    rows += [one("a", 0.6, seed=0, recipe="y"), one("b", 0.6, seed=0, recipe="z")]
    assert [row.control for row in with_gains(rows)] == ["vx", "vx", "vy", "vx"]


def test_gain_over_a_control_of_another_recipe_is_no_gain_of_the_teacher() -> None:
    def gain_of(student: dict, control: dict):
        rows = [one(f"v-s{seed}", 0.5 + seed / 100, role="control", seed=seed, **control) for seed in range(3)]
        rows += [one(f"a-s{seed}", 0.6 + seed / 99, seed=seed, **student) for seed in range(3)]
        return group_settings(with_gains(rows))[1].gain

    alike = {"recipe": "x", "lr": 0.01, "steps": 100}
    assert gain_of(alike, alike).verdict == "helped"
    longer = gain_of(alike | {"recipe": "y", "steps": 200}, alike)
    assert (longer.verdict, longer.other_recipe) == ("other recipe", "steps 200 against 100")
    assert longer.low > 0, "so by its interval it would be one"
    assert gain_of(alike | {"recipe": "y"}, alike).other_recipe == "other keys of distill or finetune"
    unknown = {"recipe": None, "lr": 0.01, "steps": 100}  # of stale rows
    assert gain_of(unknown, alike).verdict == gain_of(alike, unknown).verdict == "helped"


def test_interval_over_seeds_by_hand() -> None:
    # mean 2, variance 1, standard error 1 / sqrt(3), t with 2 degrees of freedom 4.303
    low, high = interval([1.0, 2.0, 3.0], [])
    assert (low, high) == (pytest.approx(2 - 4.303 / 3**0.5), pytest.approx(2 + 4.303 / 3**0.5))
    assert interval([1.0], [1.0, 2.0]) is None


def test_interval_adds_the_jackknife_variance_of_groups() -> None:
    # The means of the groups are 0, 3 and 6: leaving one out gives 4.5, 3 and 1.5; variance of the mean 9 / 3.
    low, high = interval([2.0, 3.0, 4.0], [4.5, 3.0, 1.5])
    half = 4.303 * (1 / 3 + 9 / 3) ** 0.5
    assert (low, high) == (pytest.approx(3 - half), pytest.approx(3 + half))


def test_fewer_of_seeds_and_groups_set_the_degrees_of_freedom() -> None:
    assert interval([1.0, 1.1, 0.9, 1.0], [1.0, 1.0])[1] - 1 == pytest.approx(
        T_975[0] * (np.var([1.0, 1.1, 0.9, 1.0], ddof=1) / 4) ** 0.5
    )


def test_quantiles_are_those_of_student() -> None:
    stats = pytest.importorskip("scipy.stats")
    assert [round(stats.t.ppf(0.975, dof), 3) for dof in range(1, 31)] == list(T_975)


@pytest.mark.parametrize(("seeds", "groups", "of_seed", "of_group"), [(3, 3, 1, 1), (3, 20, 1, 0.3), (5, 3, 0.2, 2)])
def test_interval_holds_the_truth_in_95_percent_of_sweeps(seeds, groups, of_seed, of_group) -> None:
    rng, held, sweeps = np.random.default_rng(0), 0, 2000
    for _ in range(sweeps):
        gains = (
            1
            + of_seed * rng.normal(size=(seeds, 1))
            + of_group * rng.normal(size=(1, groups))
            + 0.5 * rng.normal(size=(seeds, groups))
        )
        without = [np.delete(gains, group, axis=1).mean() for group in range(groups)]
        low, high = interval(list(gains.mean(1)), without)
        held += low <= 1 <= high
    assert held / sweeps >= 0.945


def test_seeds_of_a_setting_are_one_line_with_mean_and_spread() -> None:
    control, student = settings_of([0.53, 0.55, 0.54], [0.50, 0.51, 0.52])
    assert (control.name, student.name, student.seeds) == ("v", "a", 3)
    assert (student.mean_iou, student.spread) == (pytest.approx(0.54), pytest.approx(0.01))
    # 0.03, 0.04 and 0.02 above the controls of the same seeds
    assert student.gain.mean == pytest.approx(0.03)
    assert student.gain.low == pytest.approx(0.03 - 4.303 * 0.01 / 3**0.5)
    assert control.gain is None


def test_one_seed_has_no_interval() -> None:
    (_, student) = settings_of([0.9], [0.1])
    assert (student.gain.mean, student.gain.low, student.gain.verdict) == (pytest.approx(0.8), None, "one seed")


def test_claim_rests_on_the_unseen_drives_where_there_are_any() -> None:
    rows = [one(f"v-s{seed}", 0.50, role="control", seed=seed, unseen_mean_iou=0.30) for seed in range(3)]
    unseen = (0.28, 0.29, 0.285)
    rows += [one(f"a-s{seed}", 0.52 + seed / 1000, seed=seed, unseen_mean_iou=unseen[seed]) for seed in range(3)]
    setting = group_settings(with_gains(rows))[1]
    assert (setting.gain.verdict, setting.gain.mean) == ("helped", pytest.approx(0.021))
    assert setting.claim is setting.unseen_gain
    assert (setting.claim.verdict, setting.claim.mean) == ("hurt", pytest.approx(-0.015))
    assert setting.claim.high == pytest.approx(-0.015 + 4.303 * 0.005 / 3**0.5)


def test_unseen_drives_are_groups_of_their_interval() -> None:
    """On val all groups agree; of the unseen drives one gains what the other loses."""
    rows = [one(f"v-s{seed}", 0.5, role="control", seed=seed, unseen_mean_iou=0.5) for seed in range(3)]
    rows += [one(f"a-s{seed}", 0.6, seed=seed, unseen_mean_iou=0.6 + seed / 1000) for seed in range(3)]
    controls, students = ({f"{name}-s{seed}": counts(*px) for seed in range(3)} for name, px in GROUPS.items())
    setting = group_settings(with_gains(rows), unseen_counts=controls | students)[1]
    assert (setting.gain.groups, setting.unseen_gain.groups) == (1, 3)
    assert setting.unseen_gain.verdict == "no difference"


@pytest.mark.parametrize(
    ("students", "verdict"),
    [([0.60, 0.61, 0.62], "helped"), ([0.40, 0.41, 0.42], "hurt"), ([0.60, 0.51, 0.42], "no difference")],
)
def test_verdict_needs_an_interval_without_0(students: list[float], verdict: str) -> None:
    assert settings_of(students, [0.50, 0.51, 0.53])[1].gain.verdict == verdict


def test_seeds_that_agree_on_one_group_only_are_no_gain() -> None:
    # Equal gains of all seeds, but all of it in one of three groups.
    control, student = counts(50, 50, 50), counts(95, 50, 50)
    known = {f"v-s{seed}": control for seed in range(3)} | {f"a-s{seed}": student for seed in range(3)}
    students, controls = [0.550, 0.551, 0.552], [0.500, 0.500, 0.501]
    assert settings_of(students, controls)[1].gain.verdict == "helped"
    gain = settings_of(students, controls, counts=known)[1].gain
    assert (gain.groups, gain.verdict) == (3, "no difference")


def test_students_without_a_control_of_their_seed_are_left_out() -> None:
    rows = [one("v-s0", 0.5, role="control", seed=0), one("a-s0", 0.6, seed=0), one("a-s1", 0.7, seed=1)]
    gain = group_settings(with_gains(rows))[1].gain
    assert (gain.seeds, gain.mean, gain.low) == (1, pytest.approx(0.1), None)
    alone = [one("v", 0.5, role="control", arch="other"), one("a", 0.6)]
    assert group_settings(with_gains(alone))[1].gain is None


def test_names_of_settings_are_what_their_runs_share() -> None:
    def name(*runs: str) -> str:
        return group_settings([one(run, 0.5, seed=seed) for seed, run in enumerate(runs)])[0].name

    assert name("a03-s0", "a03-s1") == "a03"
    assert name("a03", "a03-s1") == "a03"
    assert name("a03-s10", "a03-s11") == "a03"
    assert name("a03-seed1", "a03-seed2") == "a03"
    assert name("left", "right") == "left"


def test_runs_of_other_settings_or_of_one_seed_stay_apart() -> None:
    rows = [one("a", 0.5, alpha=0.1, seed=0), one("b", 0.5, alpha=0.2, seed=1), one("c", 0.5, alpha=0.1, seed=0)]
    assert [setting.name for setting in group_settings(rows)] == ["a", "b", "c"]
    rows = [one("a", 0.5, seed=0, setting="x"), one("b", 0.5, seed=1, setting="y")]
    assert len(group_settings(rows)) == 2
