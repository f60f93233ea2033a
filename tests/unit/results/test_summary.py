"""The summary of a sweep: gains, front, champion and the files, against figures worked out by hand on three runs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from segdistill.core.errors import UserError
from segdistill.report.answer import answer
from segdistill.report.terminal import print_summary
from segdistill.results.champion import choose_champion, model_files, pareto_front
from segdistill.results.row import COLUMNS, Row
from segdistill.results.summary import of_rows, row_key, summarise, write_summary
from support.fake_metrics import BENCHMARK, sweep_params, write_metrics


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_metrics(tmp_path / "metrics")


def one(run: str, mean_iou: float, int8_mean_iou: float | None = None, **other) -> Row:
    """A run whose float32 file takes 10 ms and whose int8 file, where it has one, takes 5 ms."""
    int8 = {} if int8_mean_iou is None else {"int8_mean_iou": int8_mean_iou, "int8_mb": 2.0, "onnx_int8_p50_ms": 5.0}
    usual = {"role": "student", "arch": "net", "mean_iou": mean_iou, "float32_mean_iou": mean_iou, "float32_mb": 8.0}
    return Row(run=run, **(usual | {"onnx_float32_p50_ms": 10.0} | int8 | other))


def test_rows_hold_what_the_files_say(metrics: Path) -> None:
    summary = summarise(sweep_params(), metrics)
    assert [row.run for row in summary.rows] == ["teacher", "vanilla", "a03", "light"]
    a03 = summary.run("a03")
    assert (a03.role, a03.arch, a03.alpha, a03.teacher) == ("student", "deeplabv3plus_mobilenet", 0.3, "views")
    assert (a03.distilled_mean_iou, a03.mean_iou, a03.float32_mean_iou, a03.int8_mean_iou) == (0.45, 0.53, 0.53, 0.525)
    assert (a03.float32_mb, a03.int8_mb) == (21.0, 5.5)
    assert (a03.torch_p50_ms, a03.torch_best_p50_ms, a03.onnx_float32_p50_ms, a03.onnx_int8_p50_ms) == (40, 32, 30, 20)
    assert (a03.s_per_image, a03.torch_total_ms, a03.onnx_total_ms) == (0.041, 410.0, 310.0)
    assert (a03.steps, a03.finetune_steps, a03.seed, a03.parameters) == (10, 6, 0, 5_000_000)


def test_an_own_control_is_preferred_and_the_first_one_stands_in(metrics: Path) -> None:
    summary = summarise(sweep_params(), metrics)
    assert summary.run("a03").gain_over_vanilla == pytest.approx(0.03)
    assert (summary.run("light").control, summary.run("light").arch) == ("vanilla", "deeplabv3_mobilenet_lite")
    assert summary.run("vanilla").gain_over_vanilla == 0
    assert summary.teacher.gain_over_vanilla is None
    rows = [one("a", 0.5, role="control"), one("b", 0.4, role="control", arch="other"), one("c", 0.45, arch="other")]
    assert of_rows(rows, {}).run("c").gain_over_vanilla == pytest.approx(0.05)


def test_a_student_is_measured_against_the_control_of_its_seed() -> None:
    controls = [one(f"v{seed}", 0.5 + seed / 100, role="control", seed=seed) for seed in (0, 1)]
    other_network = one("other", 0.3, role="control", seed=2, arch="other")
    students = [one(f"a{seed}", 0.6, seed=seed) for seed in (0, 1, 2)]
    rows = of_rows([*controls, other_network, *students], {}).rows
    assert {row.run: row.control for row in rows} == {
        **{"v0": "v0", "v1": "v0", "other": "other"},
        **{"a0": "v0", "a1": "v1", "a2": "v0"},
    }


def test_a_control_agrees_as_its_export_found(metrics: Path) -> None:
    summary = summarise(sweep_params(), metrics)
    assert summary.run("vanilla").teacher_agreement == 0.8
    assert summary.run("a03").teacher_agreement == 0.9
    assert (summary.run("vanilla").method, summary.run("vanilla").temperature) == (None, None)


def test_pareto_front_by_hand() -> None:
    points = [(10, 0.5), (20, 0.6), (20, 0.55), (30, 0.6), (5, None), (None, 0.9), (10, 0.5), (40, 0.7)]
    assert pareto_front(points) == [True, True, False, False, False, False, True, True]
    assert pareto_front([]) == []


def test_front_of_the_sweep(metrics: Path) -> None:
    files = model_files(summarise(sweep_params(), metrics).rows)
    # (ms, mIoU): teacher 90 .72 | vanilla 30 .50, 20 .49 | a03 30 .53, 20 .525 | light 15 .47
    front = {(file.run, file.precision) for file in files if file.on_front}
    assert front == {("teacher", "float32"), ("a03", "float32"), ("a03", "int8"), ("light", "float32")}


def test_champion_is_the_fastest_that_keeps_98_percent(metrics: Path) -> None:
    champion = summarise(sweep_params(), metrics).champion
    assert (champion.run, champion.precision) == ("a03", "int8")  # .525 >= .98 * .53, and 20 ms against 30
    assert champion.path == "models/runs/a03/student.int8.onnx"
    broken = choose_champion([one("a", 0.50, int8_mean_iou=0.489)])  # just under .98 * .50
    assert broken.precision == "float32"
    assert choose_champion([one("a", 0.50, int8_mean_iou=0.491)]).precision == "int8"
    assert choose_champion([one("a", 0.50), one("b", 0.501)]).run == "b"  # equally fast: the more accurate
    assert choose_champion([one("a", 0.5, onnx_float32_p50_ms=None), one("b", 0.495)]).run == "b"
    assert choose_champion([one("teacher", 0.9, role="teacher", arch="big")]) is None


def test_answer_is_honest_when_distilling_did_not_help() -> None:
    rows = [one("vanilla", 0.50, role="control"), one("a03", 0.48)]
    told = answer(of_rows(rows, {}))
    assert told.headline == "Ship vanilla as float32 ONNX"
    text = " ".join(told.reasons)
    assert "owes nothing" in text
    assert "Distilling did not help" in text
    slower = [one("vanilla", 0.50, role="control"), one("a03", 0.495, onnx_float32_p50_ms=4.0)]
    assert "0.5 points below the control vanilla" in " ".join(answer(of_rows(slower, {})).reasons)


def test_answer_weighs_a_gain_against_chance() -> None:
    small = [one("vanilla", 0.50, role="control"), one("a03", 0.51)]
    assert "cannot tell so small a gain from chance" in " ".join(answer(of_rows(small, {})).reasons)
    large = [one("vanilla", 0.50, role="control"), one("a03", 0.56)]
    assert "chance" not in " ".join(answer(of_rows(large, {})).reasons)
    seeds = [one("v0", 0.54, role="control", seed=0), one("v1", 0.50, role="control", seed=1)]
    within = " ".join(answer(of_rows([*seeds, one("a03", 0.56)], {})).reasons)
    assert "less than the 4.0 points by which the controls differ" in within
    beyond = " ".join(answer(of_rows([*seeds, one("a03", 0.59)], {})).reasons)
    assert "controls differ" not in beyond
    assert answer(of_rows([one("a03", None, float32_mean_iou=None)], {})).headline.startswith("No student")


def test_answer_says_when_the_teacher_is_the_weaker_one() -> None:
    teacher = one("teacher", 0.4, role="teacher", onnx_float32_p50_ms=50.0)
    rows = [teacher, one("vanilla", 0.50, role="control"), one("a03", 0.51)]
    assert "higher than the teacher (40.0%)" in " ".join(answer(of_rows(rows, {})).reasons)
    strong = [one("teacher", 0.68, role="teacher", onnx_float32_p50_ms=50.0), *rows[1:]]
    kept = "keeps 75% of the teacher's mIoU (68.0%); it is 5.0 times as fast as the teacher in float32 ONNX"
    assert kept in " ".join(answer(of_rows(strong, {})).reasons)


def test_like_is_compared_with_like_and_each_figure_says_of_what_it_is() -> None:
    teacher = one("teacher", 0.68, 0.60, role="teacher", onnx_float32_p50_ms=50.0, onnx_int8_p50_ms=15.0)
    text = " ".join(
        answer(of_rows([teacher, one("vanilla", 0.5, 0.5, role="control"), one("a", 0.6, 0.61)], {})).reasons
    )
    assert "3.0 times as fast as the teacher in int8 ONNX and 10.0 times as fast as the teacher in float32 ONNX" in text
    assert "above the control vanilla (both int8; trained without a teacher)" in text
    runs = [one("vanilla", 0.5, role="control"), one("a", 0.52), one("b", 0.51), one("c", 0.41)]
    told = "2 end above it in PyTorch (best: a with +2.0 points; all 3 on average \N{MINUS SIGN}2.0 points)"
    assert told in " ".join(answer(of_rows(runs, {})).reasons)


@pytest.mark.parametrize(("parameters", "engine"), [(40_000_000, "PyTorch"), (None, "PyTorch and ONNX")])
def test_a_teacher_of_several_parts_stands_in_the_form_it_was_timed_in(parameters: int | None, engine: str) -> None:
    timed = {"onnx_float32_p50_ms": None, "torch_p50_ms": 90.0, "parameters": parameters}
    teacher = one("teacher", 0.68, role="teacher", **timed)
    summary = of_rows([teacher, one("vanilla", 0.50, role="control"), one("a03", 0.51)], {})
    assert (summary.files[0].p50_ms, summary.files[0].on_front) == (90.0, True)
    assert summary.teacher.timed("int8") == (engine, 90.0)
    assert f"9.0 times as fast as the teacher in {engine}." in " ".join(answer(summary).reasons)
    assert replace(teacher, torch_p50_ms=None).timed() is None


def test_files_are_flat_and_complete(metrics: Path) -> None:
    write_summary(summarise(sweep_params(), metrics), metrics)
    written = json.loads((metrics / "summary.json").read_text())
    assert list(written["runs"]) == ["vanilla", "a03", "light"]
    assert written["champion"]["run"] == "a03"
    assert written["runs"]["a03"]["gain_over_vanilla"] == pytest.approx(0.03)
    assert not any(isinstance(value, dict | list) for value in written["runs"]["a03"].values())
    with (metrics / "summary.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == COLUMNS
    assert [line["run"] for line in lines] == ["teacher", "vanilla", "a03", "light"]
    assert (lines[2]["mean_iou"], lines[3]["int8_mean_iou"], lines[0]["alpha"]) == ("0.53", "", "")
    before = (metrics / "summary.csv").read_bytes(), (metrics / "summary.json").read_bytes()
    write_summary(summarise(sweep_params(), metrics), metrics)
    assert before == ((metrics / "summary.csv").read_bytes(), (metrics / "summary.json").read_bytes())


def test_row_key_changes_with_what_a_run_depends_on() -> None:
    def key(run: str = "a03", data: str = "d", **changed) -> str:
        return row_key(sweep_params(**changed), run, data)

    assert key() == key()
    for other in ({"distill": {"steps": 11}}, {"finetune": {"gamma": 0.5}}, {"export": {"opset": 19}}):
        assert key(**other) != key()
    assert key(data="e") != key()
    assert key(teacher={"steps": 99}) != key()
    assert key(teacher_logits={"views": 3}) != key()
    # A control knows no teacher, and no run knows how the models were timed.
    assert key("vanilla", teacher={"steps": 99}, teacher_logits={"views": 3}) == key("vanilla")
    assert key(benchmark={"frames": 99}) == key()


def test_what_is_missing_is_named(metrics: Path) -> None:
    (metrics / "benchmark.json").write_text(json.dumps(BENCHMARK | {"models": {"teacher": "big_os16"}}))
    with pytest.raises(UserError, match=r"benchmark\.json: has no figures of 'vanilla'"):
        summarise(sweep_params(), metrics)
    (metrics / "runs" / "a03" / "export.json").unlink()
    (metrics / "benchmark.json").write_text(json.dumps(BENCHMARK))
    with pytest.raises(UserError, match=r"a03/export\.json: no such file; dvc repro"):
        summarise(sweep_params(), metrics)


def test_terminal_shows_names_as_they_are(metrics: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [one("vanilla", 0.5, role="control"), one("[bold]x[/bold]", 0.6)]
    print_summary(of_rows(rows, {}))
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "+10.00" in shown
    assert "reports/index.html" in shown
    assert "make ui" in shown


def test_no_heavy_import() -> None:
    code = (
        "import sys, segdistill.report.page, segdistill.report.terminal; print({'torch', 'mlflow', 'onnx'} & {*sys.modules})"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "set()\n"
