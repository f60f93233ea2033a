"""The summary of a sweep: rows, front, champion and the files, against values worked out by hand on three runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from segdistill.core.errors import UserError
from segdistill.core.files import write_json
from segdistill.report.terminal import markdown
from segdistill.results.champion import choose_champion, floor_of, model_files, pareto_front, why_busy
from segdistill.results.row import COLUMNS, OPTIONAL, TERMINAL, recipe_key, row_key, setting_key, shown_in
from segdistill.results.summary import of_rows, rows_on_disk, summarise, write_summary
from support.fake_metrics import BENCHMARK, RUNS, sweep_params, write_metrics, write_run, write_sweep
from support.rows import one


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    return write_metrics(tmp_path / "metrics")


def test_rows_have_the_values_of_the_files(metrics: Path) -> None:
    summary = summarise(sweep_params(), metrics)
    assert [row.run for row in summary.rows] == ["teacher", "vanilla", "a03", "light"]
    a03 = summary.run("a03")
    assert (a03.role, a03.arch, a03.alpha, a03.teacher) == ("student", "deeplabv3plus_mobilenet", 0.3, "views")
    assert (a03.distilled_mean_iou, a03.mean_iou, a03.float32_mean_iou, a03.int8_mean_iou) == (0.45, 0.53, 0.53, 0.525)
    assert (a03.float32_mb, a03.int8_mb) == (21.0, 5.5)
    assert (a03.torch_p50_ms, a03.torch_best_p50_ms, a03.onnx_float32_p50_ms, a03.onnx_int8_p50_ms) == (40, 32, 30, 20)
    assert (a03.s_per_image, a03.torch_total_ms, a03.onnx_total_ms) == (0.041, 410.0, 310.0)
    assert (a03.steps, a03.finetune_steps, a03.seed, a03.parameters) == (10, 6, 0, 5_000_000)


def test_unfinished_sweep_shows_the_students_that_were_trained(metrics: Path) -> None:
    (metrics / "runs/light/finetune.json").unlink()
    (metrics / "runs/a03/export.json").unlink()
    with pytest.raises(UserError, match=r"runs/a03/export.json: no such file"):
        summarise(sweep_params(), metrics)
    summary = summarise(sweep_params(), metrics, complete=False)
    assert [row.run for row in summary.rows] == ["teacher", "vanilla", "a03"]
    assert summary.run("a03").gain_over_vanilla == pytest.approx(0.03)
    assert (summary.unfinished, summary.champion) == (("a03", "light"), None)
    text = markdown(summary)
    assert "**Not finished: 2 of 3 students.** dvc repro has still to train, export or time a03, light;" in text
    (metrics / "benchmark.json").unlink()
    summary = summarise(sweep_params(), metrics, complete=False)
    assert summary.unfinished == ("vanilla", "a03", "light")
    assert "Not finished: 3 of 3 students" in markdown(summary)


def test_control_is_of_the_same_network_or_else_the_first(metrics: Path) -> None:
    summary = summarise(sweep_params(), metrics)
    assert summary.run("a03").gain_over_vanilla == pytest.approx(0.03)
    assert (summary.run("light").control, summary.run("light").arch) == ("vanilla", "deeplabv3_mobilenet_lite")
    assert summary.run("vanilla").gain_over_vanilla == 0
    assert summary.teacher.gain_over_vanilla is None
    rows = [one("a", 0.5, role="control"), one("b", 0.4, role="control", arch="other"), one("c", 0.45, arch="other")]
    assert of_rows(rows, {}).run("c").gain_over_vanilla == pytest.approx(0.05)


def test_student_is_compared_with_control_of_its_seed() -> None:
    controls = [one(f"v{seed}", 0.5 + seed / 100, role="control", seed=seed) for seed in (0, 1)]
    other_network = one("other", 0.3, role="control", seed=2, arch="other")
    students = [one(f"a{seed}", 0.6, seed=seed) for seed in (0, 1, 2)]
    rows = of_rows([*controls, other_network, *students], {}).rows
    assert {row.run: row.control for row in rows} == {
        **{"v0": "v0", "v1": "v0", "other": "other"},
        **{"a0": "v0", "a1": "v1", "a2": "v0"},
    }


def test_repetitions_are_one_setting_with_their_run(metrics: Path) -> None:
    for run, mean_iou in (("vanilla-1", 0.52), ("a03-1", 0.54), ("light-1", 0.40)):
        write_run(metrics, run, 0.4, mean_iou, None)
    benchmark = BENCHMARK | {"models": BENCHMARK["models"] | {f"{run}-1": "small_os16" for run in RUNS}}
    write_json(metrics / "benchmark.json", benchmark)
    summary = summarise(sweep_params(seeds=(0, 1)), metrics)
    assert [row.run for row in summary.runs] == ["vanilla", "vanilla-1", "a03", "a03-1", "light", "light-1"]
    assert summary.run("a03-1").control == "vanilla-1"
    found = {one.name: one for one in summary.settings}
    assert {name: (one.seeds, one.mean_iou) for name, one in found.items()} == {
        "vanilla": (2, pytest.approx(0.51)),
        "a03": (2, pytest.approx(0.535)),
        "light": (2, pytest.approx(0.435)),
    }
    assert (found["a03"].gain.mean, found["a03"].gain.seeds) == (pytest.approx(0.025), 2)  # of 0.03 and 0.02


def test_agreement_of_control_is_that_of_its_export(metrics: Path) -> None:
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


def test_champion_is_the_fastest_file_that_keeps_98_percent(metrics: Path) -> None:
    champion = summarise(sweep_params(), metrics).champion
    assert (champion.run, champion.precision) == ("a03", "int8")  # .525 >= .98 * .53, and 20 ms against 30
    assert champion.path == "models/runs/a03/student.int8.onnx"
    broken = choose_champion([one("a", 0.50, int8_mean_iou=0.489)])  # just under .98 * .50
    assert broken.precision == "float32"
    assert choose_champion([one("a", 0.50, int8_mean_iou=0.491)]).precision == "int8"
    assert choose_champion([one("a", 0.50), one("b", 0.501)]).run == "b"  # equally fast: the more accurate
    assert choose_champion([one("a", 0.5, onnx_float32_p50_ms=None), one("b", 0.495)]).run == "b"
    assert choose_champion([one("teacher", 0.9, role="teacher", arch="big")]) is None


def test_summary_files_are_flat_and_complete(metrics: Path) -> None:
    write_summary(summarise(sweep_params(), metrics), metrics)
    written = json.loads((metrics / "summary.json").read_text())
    assert list(written["runs"]) == ["vanilla", "a03", "light"]
    assert written["champion"]["run"] == "a03"
    assert written["runs"]["a03"]["gain_over_vanilla"] == pytest.approx(0.03)
    assert not any(isinstance(value, dict | list) for value in written["runs"]["a03"].values())
    with (metrics / "summary.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == tuple(name for name in COLUMNS if name not in OPTIONAL)
    assert [line["run"] for line in lines] == ["teacher", "vanilla", "a03", "light"]
    assert (lines[2]["mean_iou"], lines[3]["int8_mean_iou"], lines[0]["alpha"]) == ("0.53", "", "")
    before = (metrics / "summary.csv").read_bytes(), (metrics / "summary.json").read_bytes()
    write_summary(summarise(sweep_params(), metrics), metrics)
    assert before == ((metrics / "summary.csv").read_bytes(), (metrics / "summary.json").read_bytes())


def test_int8_file_has_its_own_mean_iou_on_the_unseen_drives(metrics: Path) -> None:
    file = metrics / "runs" / "a03" / "export.json"
    exported = json.loads(file.read_text())
    exported["int8"]["unseen"] = {"mean_iou": 0.38}
    file.write_text(json.dumps(exported))
    summary = summarise(sweep_params(), metrics)
    write_summary(summary, metrics)
    assert {row.run: row.int8_unseen_mean_iou for row in summary.runs} == {"vanilla": None, "a03": 0.38, "light": None}
    written = json.loads((metrics / "summary.json").read_text())["runs"]
    assert written["a03"]["int8_unseen_mean_iou"] == 0.38
    assert "int8_unseen_mean_iou" not in written["vanilla"]


def test_optional_columns_appear_where_a_model_has_them(metrics: Path) -> None:
    timed = BENCHMARK["networks"]["small_os16"] | {"openvino_int8": BENCHMARK["networks"]["small_os16"]["onnx_int8"]}
    networks = BENCHMARK["networks"] | {"small_os16": timed}
    (metrics / "benchmark.json").write_text(json.dumps(BENCHMARK | {"networks": networks}))
    summary = summarise(sweep_params(), metrics)
    write_summary(summary, metrics)
    with (metrics / "summary.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["openvino_int8_p50_ms"] for line in lines] == ["", "20", "20", ""]
    assert "openvino_float32_p50_ms" not in lines[0]
    assert "openvino_int8_p50_ms" in [one.name for one in shown_in(TERMINAL, summary.rows)]
    assert "openvino_int8_p50_ms" not in [one.name for one in shown_in(TERMINAL, summary.rows[:1])]


def test_row_key_changes_with_everything_a_run_depends_on() -> None:
    def key(run: str = "a03", data: str = "d", **changed) -> str:
        return row_key(sweep_params(**changed), run, data)

    assert key() == key()
    for other in ({"distill": {"steps": 11}}, {"finetune": {"gamma": 0.5}}, {"export": {"opset": 19}}):
        assert key(**other) != key()
    assert key(data="e") != key()
    assert key(teacher={"steps": 99}) != key()
    assert key(teacher_logits={"views": 3}) != key()
    # A default that is written out is no other experiment.
    assert key(distill={"ema_decay": 0.0}) == key() != key(distill={"ema_decay": 0.9})
    # A control knows no teacher but draws its crops from the same views, and no run knows how the models were timed.
    assert key("vanilla", teacher={"steps": 99}, teacher_logits={"dtype": "float32"}) == key("vanilla")
    for other in ({"views": 3}, {"stride": 8}):
        assert key("vanilla", teacher_logits=other) != key("vanilla")
    assert key(benchmark={"frames": 99}) == key()


def test_row_key_of_a_repetition_knows_the_global_seed() -> None:
    params = sweep_params().model_copy(update={"seeds": (1,)})
    other = params.model_copy(update={"seed": params.seed + 7})
    for run in ("vanilla-1", "a03-1"):  # it draws the views, and trains the teacher
        assert row_key(params, run, "d") != row_key(other, run, "d")
        assert setting_key(params, run, "d") == setting_key(params, params.run_of(run), "d")


def test_run_with_both_weights_has_them_in_place_of_alpha(metrics: Path) -> None:
    params = sweep_params()
    raw = params.model_dump()
    raw["runs"]["a03"] |= {"alpha": None, "label_weight": 1.0, "distill_weight": 0.8}
    by_weights = type(params).model_validate(raw)
    found = {row.run: row for row in summarise(by_weights, metrics).rows}
    assert (found["a03"].alpha, found["a03"].label_weight, found["a03"].distill_weight) == (None, 1.0, 0.8)
    assert (found["light"].alpha, found["light"].label_weight, found["light"].distill_weight) == (0.6, None, None)
    assert row_key(by_weights, "a03", "d") != row_key(params, "a03", "d")
    heads = markdown(summarise(by_weights, metrics)).splitlines()[0]
    assert "| α | Label weight | Distill weight | lr |" in heads
    assert "weight" not in markdown(summarise(params, metrics)).splitlines()[0]


def test_missing_metrics_are_named(metrics: Path) -> None:
    (metrics / "benchmark.json").write_text(json.dumps(BENCHMARK | {"models": {"teacher": "big_os16"}}))
    with pytest.raises(UserError, match=r"benchmark\.json: has no latencies of 'vanilla'"):
        summarise(sweep_params(), metrics)
    (metrics / "runs" / "a03" / "export.json").unlink()
    (metrics / "benchmark.json").write_text(json.dumps(BENCHMARK))
    with pytest.raises(UserError, match=r"a03/export\.json: no such file; dvc repro"):
        summarise(sweep_params(), metrics)


def test_settings_with_equal_keys_differ_by_seed_and_name_only() -> None:
    params = sweep_params()
    raw = params.model_dump()
    raw["runs"] |= {
        "a03-s1": raw["runs"]["a03"] | {"seed": 1},
        "a03-wd": raw["runs"]["a03"] | {"weight_decay": 0.5},
    }
    params = type(params).model_validate(raw)
    assert setting_key(params, "a03", "d") == setting_key(params, "a03-s1", "d")
    assert setting_key(params, "a03", "d") != setting_key(params, "a03-wd", "d")
    assert setting_key(params, "a03", "d") != setting_key(params, "vanilla", "d")
    assert recipe_key(params, "a03") == recipe_key(params, "a03-s1") == recipe_key(params, "vanilla")
    assert recipe_key(params, "a03") != recipe_key(params, "a03-wd")


def test_recipe_is_what_trains_a_run_however_it_is_watched_and_written() -> None:
    raw = sweep_params().model_dump()
    a03 = raw["runs"]["a03"]
    raw["runs"] |= {
        "a03-seen": a03 | {"evaluate_every_steps": 7, "log_every_steps": 3, "checkpoint_every_steps": 2},
        "a03-lr": a03 | {"finetune": {"lr": a03["lr"]}},  # what null means
        "a03-slow": a03 | {"finetune": {"lr": a03["lr"] / 2}},
    }
    params = type(sweep_params()).model_validate(raw)
    keys = {run: recipe_key(params, run) for run in ("a03", "a03-seen", "a03-lr", "a03-slow")}
    assert keys["a03"] == keys["a03-seen"] == keys["a03-lr"] == recipe_key(params, "vanilla")
    assert keys["a03"] != keys["a03-slow"]


def test_nothing_is_shipped_below_a_floor(metrics: Path) -> None:
    weak = [one("teacher", 0.8, role="teacher", arch="big"), one("a", 0.39), one("b", 0.35)]
    assert of_rows(weak, {}).champion is None  # under half of the teacher
    assert of_rows(weak, {}).floor.reason == "half of the teacher's"
    assert of_rows([*weak, one("c", 0.41)], {}).champion.run == "c"
    assert of_rows(weak[1:], {}, baseline=0.40).champion is None
    assert of_rows(weak[1:], {}, baseline=0.36).champion.run == "a"
    assert floor_of(weak[1:], None, 0.3).mean_iou == 0.3
    assert summarise(sweep_params(report={"min_mean_iou": 0.54}), metrics).champion is None
    assert summarise(sweep_params(report={"min_mean_iou": 0.52}), metrics).champion.run == "a03"
    write_summary(summarise(sweep_params(report={"min_mean_iou": 0.54}), metrics), metrics)
    assert json.loads((metrics / "summary.json").read_text())["champion"] is None


def test_baseline_is_the_most_frequent_class_of_val_everywhere(metrics: Path) -> None:
    record = metrics / "val" / "confusion.csv"
    record.write_text("class,road,traffic light,train\nroad,60,0,0\ntraffic light,0,30,0\ntrain,0,0,10\n")
    (metrics / "val" / "groups.csv").unlink()  # as of an earlier version
    (metrics / "teacher.json").write_text(json.dumps({"mean_iou": 0.1, "class_iou": {}}))
    floor = summarise(sweep_params(report={"min_mean_iou": 0.0}), metrics).floor
    assert floor.mean_iou == pytest.approx(0.6 / 3)
    assert "most frequent class" in floor.reason


def test_pick_ignores_latencies_of_a_busy_machine() -> None:
    rows = [one("a", 0.50, 0.495)]
    idle = {"conditions": {"load_1min_after": 2.1, "cpus": 2}}
    assert of_rows(rows, idle).champion.precision == "int8"
    busy = of_rows(rows, {"conditions": {"load_1min_after": 3.5, "cpus": 2}})
    assert busy.champion.precision == "float32"  # the most accurate
    assert "load 3.5 for 2 cores" in busy.busy
    assert "best val mIoU" in busy.rule
    timed = {"end_to_end_p50_ms": 10.0, "end_to_end_p95_ms": 21.0}
    assert "p95 is 2.1 times p50" in why_busy({"networks": {"net": {"torch": timed}}})
    assert why_busy({"networks": {"net": {"torch": timed | {"end_to_end_p95_ms": 12.0}}}}) is None


def test_load_is_read_as_the_benchmark_writes_it() -> None:
    written = json.loads((Path(__file__).resolve().parents[3] / "metrics/benchmark.json").read_text())["conditions"]
    assert why_busy({"conditions": written | {"load_1min_after": 0.0}}) is None
    busy = {"conditions": written | {"load_1min_after": 1.6 * written["cpus"]}}
    assert f"load {1.6 * written['cpus']:.1f} for {written['cpus']} cores" in why_busy(busy)
    assert busy["conditions"].keys() == written.keys()


def test_summary_has_one_entry_per_setting_over_seeds(tmp_path: Path) -> None:
    params = write_sweep(tmp_path / "metrics", [0.5, 0.52, 0.51], {"a03": [0.02, 0.03, 0.04]})
    write_summary(summarise(params, tmp_path / "metrics"), tmp_path / "metrics")
    written = json.loads((tmp_path / "metrics" / "summary.json").read_text())["settings"]
    assert list(written) == ["vanilla", "a03"]
    assert (written["a03"]["seeds"], written["a03"]["val_groups"]) == (3, 3)
    assert written["a03"]["gain_over_vanilla"] == pytest.approx(0.03)
    assert written["vanilla"]["spread"] == pytest.approx(0.01)
    assert written["vanilla"]["gain_low"] is None


def test_rows_of_a_sweep_that_is_not_done_have_what_is_there(metrics: Path) -> None:
    (metrics / "benchmark.json").unlink()
    (metrics / "runs" / "a03" / "finetune.json").unlink()
    (metrics / "runs" / "a03" / "export.json").unlink()
    (metrics / "runs" / "light" / "distill.json").unlink()
    rows = {row.run: row for row in rows_on_disk(sweep_params(), metrics)}
    assert list(rows) == ["teacher", "vanilla", "a03"]
    assert (rows["a03"].is_finished, rows["a03"].distilled_mean_iou, rows["a03"].mean_iou) == (False, 0.45, None)
    assert rows["vanilla"].mean_iou == 0.5
    assert rows["vanilla"].onnx_float32_p50_ms is None
