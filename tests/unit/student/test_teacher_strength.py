"""A teacher that is not stronger than a trained control is named before a student learns from it."""

from __future__ import annotations

import shutil

import pytest

from segdistill.core.files import read_json, write_json
from segdistill.student import teacher_strength
from segdistill.student.run import distill
from segdistill.student.teacher_strength import Weaker, weaker_than_controls
from support.tiny_city import tinier_params

VANILLA = {"alpha": 0.0, "lr": 0.01, "teacher": "none"}
RUNS = {"vanilla": VANILLA, "longer": VANILLA | {"steps": 9}, "taught": VANILLA | {"alpha": 0.5, "teacher": "views"}}
TEACHER = {"weights_sha256": "t", "data_fingerprint": "d", "mean_iou": 0.4, "unseen": {"mean_iou": 0.35}}


def params_of():
    return tinier_params(runs=RUNS)


def metrics_of(folder, controls: dict[str, dict], **teacher) -> None:
    write_json(folder / "teacher.json", TEACHER | teacher)
    for file, metrics in controls.items():
        write_json(folder / "runs" / file, {"data_fingerprint": "d"} | metrics)


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({"vanilla/distill.json": {"mean_iou": 0.39}}, []),
        ({"vanilla/distill.json": {"mean_iou": 0.4}}, [Weaker("vanilla", "val", 0.4, 0.4)]),
        (
            {"vanilla/distill.json": {"mean_iou": 0.5}, "vanilla/finetune.json": {"mean_iou": 0.3}},
            [],
        ),
        (
            {"vanilla/finetune.json": {"mean_iou": 0.45}, "longer/finetune.json": {"mean_iou": 0.5}},
            [Weaker("longer", "val", 0.5, 0.4)],
        ),
        (
            {"vanilla/finetune.json": {"mean_iou": 0.39, "unseen": {"mean_iou": 0.36}}},
            [Weaker("vanilla", "the unseen drives", 0.36, 0.35)],
        ),
        ({"taught/distill.json": {"mean_iou": 0.5}}, []),
        ({"vanilla/distill.json": {"mean_iou": 0.5, "data_fingerprint": "other"}}, []),
        ({"vanilla/distill.json": {"mean_iou": None}}, []),
        ({}, []),
    ],
    ids=["weaker", "equal", "last metrics", "strongest", "unseen", "no control", "other data", "no class", "none yet"],
)
def test_strongest_control_that_is_not_below_the_teacher_is_named(tmp_path, controls, expected):
    metrics_of(tmp_path, controls)
    assert weaker_than_controls(params_of(), tmp_path, "t", "d") == expected


def test_metrics_of_another_teacher_or_damaged_ones_say_nothing(tmp_path):
    params = params_of()
    metrics_of(tmp_path, {"vanilla/distill.json": {"mean_iou": 0.5}})
    assert weaker_than_controls(params, tmp_path, "t", "d")
    assert not weaker_than_controls(params, tmp_path, "other", "d")
    (tmp_path / "runs" / "vanilla" / "distill.json").write_text("{")
    assert not weaker_than_controls(params, tmp_path, "t", "d")


def test_each_file_of_a_control_is_read_once(tmp_path, monkeypatch):
    metrics_of(tmp_path, {"vanilla/finetune.json": {"mean_iou": 0.45, "unseen": {"mean_iou": 0.36}}})
    paths = []

    def counted(path):
        paths.append(path)
        return read_json(path)

    monkeypatch.setattr(teacher_strength, "read_json", counted)
    found = weaker_than_controls(params_of(), tmp_path, "t", "d")
    assert [one.place for one in found] == ["val", "the unseen drives"]
    assert len(paths) == len(set(paths))


def test_the_warning_comes_before_the_training_and_changes_no_result(city, tmp_path, monkeypatch, capsys):
    for name in ("data", "models", "metrics"):
        shutil.copytree(city / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    params = params_of()
    distill(params, "taught")
    written = (tmp_path / "metrics/runs/taught/distill.json").read_bytes()
    assert "not stronger" not in capsys.readouterr().err
    teacher = read_json("metrics/teacher.json")
    control = {"mean_iou": 0.99, "data_fingerprint": teacher["data_fingerprint"]}
    write_json(tmp_path / "metrics/runs/vanilla/finetune.json", control)
    distill(params, "taught")
    said = capsys.readouterr().err
    expected = "distill/taught: the teacher is not stronger than the control vanilla: its mIoU on val is "
    assert f"{expected}{100 * teacher['mean_iou']:.1f}%, that of the control 99.0%" in said
    assert (tmp_path / "metrics/runs/taught/distill.json").read_bytes() == written
