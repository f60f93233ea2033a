"""The teacher next to the control by class: where it is below, there is nothing to learn from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segdistill.report.words import answer, nothing_to_learn
from segdistill.results.summary import Summary, of_rows
from segdistill.results.teaching import compare_classes, strongest_control
from support.rows import one


def summary_of(teacher: dict, controls: list[dict], on_views: dict | None = None, **scores: float) -> Summary:
    """A teacher and a control by seed, with these IoU by class; mean_iou is their mean where `scores` say nothing."""

    def row(run: str, ious: dict, **other):
        known = [iou for iou in ious.values() if iou is not None]
        return one(run, scores.get(run, sum(known) / len(known)), class_iou=ious, **other)

    rows = [row("teacher", teacher, role="teacher")]
    rows += [row(f"vanilla-s{seed}", ious, role="control", seed=seed) for seed, ious in enumerate(controls)]
    measured = {"online": {"crops": 0}, "views": {"crops": 8, "class_iou": on_views or {}}}
    return replace(of_rows(rows, {}), learned_from=measured)


def test_classes_below_the_mean_of_the_control_are_named():
    found = summary_of(
        {"road": 0.95, "traffic_light": 0.3, "sky": 0.9, "train": None},
        [{"road": 0.8, "traffic_light": 0.5, "sky": 0.95}, {"road": 0.82, "traffic_light": 0.3, "sky": 0.85}],
    )
    below = [each.name for each in compare_classes(found) if each.below]
    assert below == ["traffic_light"], "sky is equal to the mean over both seeds; train has no IoU"
    text = "There is nothing to learn on 1 of 4 classes, on which the teacher is below the control vanilla on val: "
    assert nothing_to_learn(found) == f"{text}traffic light."


def test_teacher_that_is_not_stronger_is_named_with_both_numbers():
    found = summary_of({"road": 0.4, "sky": 0.4}, [{"road": 0.3, "sky": 0.56}])
    text = nothing_to_learn(found)
    assert text.startswith(
        "The teacher is not stronger than the control vanilla-s0 (val mIoU 40.0% against 43.0%). There is"
    )
    assert text.endswith(": sky.")
    assert text in answer(found).reasons, "so the terminal prints it as well"


def test_teacher_that_is_stronger_on_val_alone_is_named():
    found = summary_of({"road": 0.9}, [{"road": 0.8}, {"road": 0.8}])
    unseen = {"teacher": 0.40, "vanilla-s0": 0.39, "vanilla-s1": 0.43}
    rows = [replace(row, unseen_mean_iou=unseen[row.run]) for row in found.rows]
    text = "On the unseen drives the teacher is not stronger than vanilla (mIoU 40.0% against 41.0%)."
    assert nothing_to_learn(of_rows(rows, {})) == text
    stronger = [replace(rows[0], unseen_mean_iou=0.42), *rows[1:]]
    assert nothing_to_learn(of_rows(stronger, {})) == ""


def test_views_are_compared_with_the_control_on_val():
    found = summary_of({"road": 0.4, "sky": 0.4}, [{"road": 0.3, "sky": 0.5}], on_views={"road": 0.35, "sky": 0.45})
    assert [(each.views, each.below_on_views) for each in compare_classes(found)] == [(0.35, False), (0.45, True)]
    assert "On the views, too, the teacher is below what the control has on val: sky." in nothing_to_learn(found)


@pytest.mark.parametrize(
    "found",
    [
        summary_of({"road": 0.9}, [{"road": 0.8}]),
        summary_of({"road": 0.9}, []),
        of_rows([one("vanilla", 0.5, role="control")], {}),
    ],
    ids=["a stronger teacher", "no control", "no teacher"],
)
def test_nothing_is_said_where_the_teacher_has_something_to_teach(found):
    assert nothing_to_learn(found) == ""


def test_many_classes_are_counted():
    classes = [f"class_{number}" for number in range(11)]
    text = nothing_to_learn(summary_of(dict.fromkeys(classes, 0.2), [dict.fromkeys(classes, 0.3)]))
    assert "on 11 of 11 classes" in text
    assert text.endswith("class 6, class 7 and 3 more.")


def test_strongest_of_several_controls_is_compared():
    rows = [one("weak", 0.3, role="control"), one("strong", 0.5, role="control", arch="other")]
    control = strongest_control(of_rows(rows, {}))
    assert control is not None
    assert control.name == "strong"
