"""The names of stages that messages and sweeps use are those of dvc.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from segdistill.core.errors import UserError
from segdistill.params.read import load_params
from segdistill.params.stages import (
    NAMED_IN_DVC,
    OF_A_RUN,
    REPEAT,
    all_stages,
    announce_stage,
    copied_from_run,
    shared_stages,
    student_stages,
)
from segdistill.paths import student_outputs

ROOT = Path(__file__).parents[3]


@pytest.fixture
def params():
    return load_params(ROOT / "profiles/tiny.yaml").model_copy(update={"seeds": (0, 1)})


def test_stages_are_those_of_dvc_yaml(params):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(dict.fromkeys(stage.partition("@")[0] for stage in all_stages(params))) == list(declared)
    assert [name for name, stage in declared.items() if stage.get("foreach") == "${runs}"] == list(OF_A_RUN)
    repeated = {"run": "${runs}", "seed": "${seeds}"}
    assert [name for name, stage in declared.items() if stage.get("matrix") == repeated] == [
        f"{stage}{REPEAT}" for stage in OF_A_RUN
    ]


def lines_of(stage: dict, *keys: str) -> set[str]:
    """The entries of a stage under `keys`, as paths of the run `${key}`."""
    entries = [entry for key in keys for entry in stage.get(key, ())]
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries}


@pytest.mark.parametrize("stage", OF_A_RUN)
def test_a_repetition_is_the_stage_of_its_run_with_other_seeds(stage):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    of_run, repetition = declared[stage]["do"], declared[f"{stage}{REPEAT}"]
    assert repetition["cmd"] == of_run["cmd"]
    assert repetition["params"] == [key.replace("${key}", "${item.run}") for key in of_run["params"]]
    # What the run's stage writes is what the stages of a seed that the run has copy.
    written = lines_of(of_run, "outs", "metrics", "plots")
    assert written == {str(path) for path in student_outputs(stage, "${key}")}
    assert lines_of(repetition, "outs") == written
    # What the run wrote takes the place of what a matrix cannot look up.
    looked_up = {"initial_weights", "data/teacher_logits/${item.teacher}", "src/segdistill/networks/${item.student}.py"}
    of_the_run = {path.replace("${key}", "${item.run}") for path in written}
    assert lines_of(repetition, "deps") == lines_of(of_run, "deps") - looked_up | of_the_run
    assert not lines_of(repetition, "metrics", "plots"), "`dvc metrics` and `dvc plots` show runs, not all seeds"


def test_a_seed_that_a_run_has_is_copied(params, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    own = params.runs["vanilla"].model_copy(update={"seed": 1})
    params = params.model_copy(update={"runs": params.runs | {"own": own}})
    assert params.seed == 0
    for run in ("vanilla", "own"):
        for path in student_outputs("distill", run):
            file = path if path.suffix else path / "step" / "image.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{path.name} of {run}")
            file.chmod(0o444)  # as links into DVC's cache
    for name in ("vanilla-1", "own-0", "vanilla", "vanilla-2", "other-0"):
        assert not copied_from_run(params, "distill", name)
    assert capsys.readouterr().err == ""
    for name, run in (("vanilla-0", "vanilla"), ("own-1", "own")):
        assert copied_from_run(params, "distill", name)
        assert f"{name}: copied from {run}" in capsys.readouterr().err
        for path in student_outputs("distill", name):
            file = path if path.suffix else path / "step" / "image.png"
            assert file.read_text() == f"{path.name} of {run}"
            assert file.stat().st_mode & 0o200
    assert {path.name for path in tmp_path.glob("models/runs/*")} == {"vanilla", "own", "vanilla-0", "own-1"}


def test_every_student_is_trained_by_some_stage(params):
    of_students = student_stages(params)
    assert set(of_students) == set(params.students())
    needless = {f"{stage}{REPEAT}@{run}-0" for stage in OF_A_RUN for run in params.runs}  # of the seed that runs have
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
