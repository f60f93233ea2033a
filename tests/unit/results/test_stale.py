"""Rows whose settings were changed in params.yaml keep the settings that they were computed with, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from segdistill.compare.runs import compare_runs
from segdistill.compare.tables import markdown as compare_markdown
from segdistill.formats.header import KEY, Header
from segdistill.params.model import Params
from segdistill.report.terminal import markdown, print_summary
from segdistill.results.stale import changed_runs
from segdistill.results.summary import summarise, write_summary
from segdistill.tracking.rows import rows_on_disk
from support.fake_metrics import sweep_params, write_metrics


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    metrics = write_metrics(tmp_path / "metrics")
    write_summary(summarise(sweep_params(), metrics), metrics)
    return metrics


def edited(**run: object) -> Params:
    params = sweep_params()
    raw = params.model_dump()
    raw["runs"]["a03"] |= run
    return Params.model_validate(raw)


def test_row_keeps_the_settings_it_was_computed_with(metrics: Path) -> None:
    assert not any(row.is_stale for row in summarise(sweep_params(), metrics).rows)
    summary = summarise(edited(alpha=0.5, lr=0.1), metrics)
    row = summary.run("a03")
    assert (row.is_stale, row.alpha, row.lr, row.mean_iou) == (True, 0.3, 0.01, 0.53)
    assert not summary.run("vanilla").is_stale


def test_control_that_became_a_student_stays_a_control(metrics: Path) -> None:
    params = sweep_params()
    raw = params.model_dump()
    raw["runs"]["vanilla"] |= {"alpha": 0.9, "teacher": "views"}
    row = summarise(Params.model_validate(raw), metrics).run("vanilla")
    assert (row.is_stale, row.role, row.alpha, row.teacher) == (True, "control", 0.0, None)


def test_a_setting_without_a_column_marks_the_row_too(metrics: Path) -> None:
    assert summarise(edited(weight_decay=0.5), metrics).run("a03").is_stale


def test_every_format_marks_stale_rows(metrics: Path, capsys: pytest.CaptureFixture) -> None:
    summary = summarise(edited(alpha=0.5), metrics)
    print_summary(summary)
    for text in (capsys.readouterr().out, markdown(summary)):
        assert "a03 (stale)" in text
        assert "vanilla (stale)" not in text
        assert "params.yaml or the data was changed since the metrics of a03 were computed; run: dvc repro" in text
    found = compare_runs(edited(alpha=0.5), metrics, ["vanilla", "a03"])
    assert {line.label: line.values for line in found.settings}["alpha"] == (0.0, 0.3)
    assert "a03 (stale)" in compare_markdown(found)


def test_changed_runs_names_runs_only_while_a_record_tells(metrics: Path) -> None:
    runs = ["vanilla", "a03", "light"]
    assert changed_runs(sweep_params(), metrics, runs) is None
    assert "a03" in changed_runs(edited(alpha=0.5), metrics, runs)
    assert changed_runs(edited(alpha=0.5), metrics, ["vanilla"]) is None
    (metrics / "summary.json").write_text(json.dumps({"runs": {}}))
    assert changed_runs(edited(alpha=0.5), metrics, runs) is None


@pytest.mark.parametrize("file", ["teacher.json", "runs/a03/distill.json"])
def test_metrics_of_earlier_data_are_stale_until_the_run_is_trained_again(metrics: Path, file: str) -> None:
    facts = json.loads((metrics / file).read_text())
    (metrics / file).write_text(json.dumps(facts | {"data_fingerprint": "other data"}))
    row = summarise(sweep_params(), metrics).run("a03")
    assert (row.is_stale, row.alpha, row.lr, row.finetune_steps) == (True, 0.3, 0.01, sweep_params().finetune.steps)
    assert "params.yaml or the data was changed" in changed_runs(sweep_params(), metrics, ["a03"])


@pytest.mark.parametrize("file", ["teacher.safetensors", "0.safetensors"])
def test_teacher_of_other_settings_is_stale_and_shows_those_it_was_trained_with(metrics: Path, file: str) -> None:
    params = sweep_params()
    folder = metrics.parent / "models" / "teacher"
    folder.mkdir(parents=True)
    header = Header.of_net(params.teacher.network, 19, params.teacher.output_stride).with_history(
        params=params.teacher.model_dump(mode="json", exclude={"min_mean_iou", "cross_fit"}), seed=params.seed
    )
    save_file({"weight": np.zeros(1, np.float32)}, folder / file, metadata={KEY: header.text()})
    assert not summarise(params, metrics).teacher.is_stale
    assert not summarise(sweep_params(teacher={"min_mean_iou": 0.1}), metrics).teacher.is_stale
    for changed in (sweep_params(teacher={"lr": 0.5}), params.model_copy(update={"seed": 7})):
        row = summarise(changed, metrics).teacher
        assert (row.is_stale, row.lr, row.seed) == (True, params.teacher.lr, params.seed)
        assert "the metrics of teacher, " in markdown(summarise(changed, metrics))
        assert "of teacher were computed" in changed_runs(changed, metrics, ["teacher", "no such run"])
        assert [row.run for row in rows_on_disk(changed, metrics)].count("teacher") == 0
    assert not summarise(sweep_params(teacher={"lr": 0.5}), metrics, check_stale=False).teacher.is_stale
