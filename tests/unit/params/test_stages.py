"""The names of stages that messages and sweeps use are those of dvc.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from segdistill.core.errors import UserError
from segdistill.params.read import load_params
from segdistill.params.stages import NAMED_IN_DVC, OF_A_RUN, all_stages, announce_stage, shared_stages, student_stages

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


def test_keys_that_dvc_misses_are_named_at_once(monkeypatch, tmp_path):
    raw = yaml.safe_load((ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8"))
    del raw["seeds"], raw["teacher_logits"]["mirrored"], raw["distill"]["scale_range"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw))
    params = load_params(tmp_path / "params.yaml")
    monkeypatch.setenv("DVC_STAGE", "prepare")
    with pytest.raises(UserError) as error:
        announce_stage(params)
    for line in ("(3):", "seeds: missing", "mirrored: missing", "scale_range: missing", "[1.0, 1.0] is as before"):
        assert line in str(error.value)


def test_keys_that_dvc_needs_are_those_of_dvc_yaml(params):
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    stages = yaml.safe_load(text)["stages"].values()
    named = {key for stage in stages for key in stage.get("do", stage)["params"]} | set(
        re.findall(r"\$\{([\w.]+)\}", text)
    )
    optional = set()
    for key in named:
        model, _, name = key.rpartition(".")
        fields = type(getattr(params, model) if model in {"teacher_logits", "distill"} else params).model_fields
        if name in fields and not fields[name].is_required():
            optional.add(key)
    assert optional == set(NAMED_IN_DVC)
