"""The names of stages that messages and sweeps use are those of dvc.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from segdistill.params.read import load_params
from segdistill.params.stages import OF_A_RUN, all_stages, announce_stage, shared_stages, student_stages

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params():
    return load_params(ROOT / "profiles/tiny.yaml").model_copy(update={"seeds": (0, 1)})


def test_stages_are_those_of_dvc_yaml(params):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(dict.fromkeys(stage.partition("@")[0] for stage in all_stages(params))) == list(declared)
    assert [name for name, stage in declared.items() if stage.get("foreach") == "${runs}"] == list(OF_A_RUN)
    assert declared["repeat"]["matrix"] == {"run": "${runs}", "seed": "${seeds}"}


def test_every_student_is_trained_by_some_stage(params):
    of_students = student_stages(params)
    assert set(of_students) == set(params.students())
    needless = {f"repeat@{run}-0" for run in params.runs}  # with the seed that the run has
    others = {*shared_stages(params), "benchmark", "report"}
    assert {stage for stages in of_students.values() for stage in stages} | needless | others == set(all_stages(params))


def test_a_stage_says_how_far_dvc_is(params, monkeypatch, capsys):
    monkeypatch.setenv("DVC_STAGE", "distill@vanilla")
    announce_stage(params)
    number, count = all_stages(params).index("distill@vanilla") + 1, len(all_stages(params))
    assert capsys.readouterr().err == f"distill@vanilla: stage {number} of {count}\n"


def test_a_stage_that_a_person_starts_says_nothing(params, monkeypatch, capsys):
    monkeypatch.delenv("DVC_STAGE", raising=False)
    announce_stage(params)
    assert capsys.readouterr().err == ""
