"""MLflow as a view of metrics/: everything exactly once."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

from segdistill.params.read import load_params
from segdistill.tracking.mlflow import track
from segdistill.tracking.rows import read_curve, rows_on_disk
from support.sweep_on_disk import (
    FIGURES,
    HEADER,
    PREDICTED,
    RUNS,
    TRUTH,
    expected_points,
    line,
    logged_pictures,
    runs_in,
    write,
    write_curve,
    write_params,
    write_step_pictures,
)


def count(found: dict[str, list]) -> tuple[int, int]:
    runs = [run for same in found.values() for run in same]
    return len(runs), sum(len(points) for run in runs for points in run.histories.values())


def test_rows_hold_params_figures_curves_and_pictures(home, capfd):
    assert track(load_params(), Path("metrics"))
    assert capfd.readouterr() == ("", "")
    found = runs_in()
    children = {f"{run}/{phase}" for run in RUNS for phase in ("distill", "finetune")}
    assert found.keys() == {"teacher", "teacher/train", *RUNS, *children}
    assert all(len(same) == 1 for same in found.values())
    (row,) = found["a03-lr01"]
    assert row.data.params | {"alpha": "0.3", "lr": "0.01", "temperature": "1", "crop": "64x64"} == row.data.params
    assert row.data.params["student"] == "deeplabv3plus_mobilenet"
    assert row.data.params["teacher_arch"] == "deeplabv3plus_mobilenet"
    assert found["vanilla"][0].data.params["teacher_arch"] == "-"
    figures = row.data.metrics
    assert (figures["mean_iou"], figures["distilled_mean_iou"], figures["onnx_int8_mean_iou"]) == (0.3, 0.2, 0.29)
    assert (figures["torch_p50_ms"], figures["onnx_int8_forward_p50_ms"]) == (25, 20)
    assert (figures["class_iou_traffic_light"], figures["onnx_float32_bytes"]) == (0.1, 20_000_000)
    assert figures["onnx_int8_mb"] == 20
    assert "class_iou_train" not in figures
    assert row.data.tags["segdistill.current"] == "true"
    assert row.data.tags["git_revision"] == "0123456789ab-dirty"
    assert row.info.status == "FINISHED"
    (data,) = row.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("synthetic city", FIGURES["data_fingerprint"][:12])
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    assert row.pictures == ["pictures/00001_image.png", "pictures/00001_student.png"]
    (curve,) = found["a03-lr01/distill"]
    assert curve.data.tags["mlflow.parentRunId"] == row.info.run_id
    assert [step for step, _ in curve.histories["loss"]] == expected_points(40)
    assert [step for step, _ in curve.histories["holdout_mean_iou"]] == list(range(5, 41, 5))
    notes = {name: run.data.tags["mlflow.note.content"] for name, (run,) in found.items()}
    assert {name: len(note.split("  \n")) for name, note in notes.items()} == dict.fromkeys(found, 2)
    assert "**a03-lr01**" in notes["a03-lr01/distill"]


def test_whoever_watches_sees_how_far_it_is_and_a_log_stays_empty(home, monkeypatch, capfd):
    assert track(load_params(), Path("metrics"), shown=True)
    assert capfd.readouterr() == ("", "")
    shown = []

    class Bar(contextlib.nullcontext):
        def __init__(self, _: str, total: int, unit: str) -> None:
            super().__init__()
            shown.append(total)

        def advance(self) -> None:
            shown.append("row")

    monkeypatch.setattr("segdistill.tracking.Progress", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert track(load_params(), Path("metrics"), shown=True)
    assert shown == [6, *["row"] * 6], "figures and pictures of the teacher and two runs"


def test_pictures_by_step_are_there_once_however_often_it_is_tracked(home):
    folder = Path("metrics/runs/vanilla/distill_images")
    write_step_pictures(folder, 5)
    assert track(load_params(), Path("metrics"))
    expected = [(PREDICTED, 5)] * 2 + [(TRUTH, 0)] * 2
    (curve,) = runs_in()["vanilla/distill"]
    assert logged_pictures(curve) == expected
    assert curve.data.tags["mlflow.loggedImages"] == "True"
    write_step_pictures(folder, 5, 10)  # as if it had been cut short before
    assert track(load_params(), Path("metrics"))
    assert track(load_params(), Path("metrics"))
    assert logged_pictures(curve) == sorted(expected + [(PREDICTED, 10)] * 2)


def test_tracking_again_adds_nothing_and_a_changed_figure_one_point(home):
    assert track(load_params(), Path("metrics"))
    first = count(runs_in())
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == first
    write(Path("metrics/runs/vanilla/finetune.json"), FIGURES | {"mean_iou": 0.4})
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == (first[0], first[1] + 1)
    assert runs_in()["vanilla"][0].data.metrics["mean_iou"] == 0.4


def test_a_changed_alpha_is_another_row_and_the_old_one_stays(home):
    track(load_params(), Path("metrics"))
    track(write_params(RUNS | {"a03-lr01": {"alpha": 0.4, "lr": 0.01, "teacher": "views"}}), Path("metrics"))
    found = runs_in()
    current = {run.data.params["alpha"]: run.data.tags["segdistill.current"] for run in found["a03-lr01"]}
    assert current == {"0.3": "false", "0.4": "true"}
    assert len(found["vanilla"]) == 1
    assert sorted(run.data.tags["segdistill.current"] for run in found["a03-lr01/distill"]) == ["false", "true"]
    track(write_params(RUNS), Path("metrics"))  # back again: the old row is the current one
    found = runs_in()
    current = {run.data.params["alpha"]: run.data.tags["segdistill.current"] for run in found["a03-lr01"]}
    assert current == {"0.3": "true", "0.4": "false"}


def test_runs_that_the_sweep_has_lost_are_no_longer_current(home):
    def current() -> set[str]:
        found = runs_in()
        return {name for name, same in found.items() if same[0].data.tags["segdistill.current"] == "true"}

    track(load_params(), Path("metrics"))
    whole = {"teacher", "teacher/train"} | {f"{run}{part}" for run in RUNS for part in ("", "/distill", "/finetune")}
    assert current() == whole
    track(write_params({"vanilla": RUNS["vanilla"]}), Path("metrics"))
    assert current() == {name for name in whole if not name.startswith("a03-lr01")}
    assert runs_in()["a03-lr01"][0].data.metrics["mean_iou"] == 0.3, "it is old, and there"
    track(write_params(RUNS), Path("metrics"))
    assert current() == whole


def test_figures_are_as_long_as_a_column_is_wide_and_counts_are_whole(home):
    write(Path("metrics/runs/vanilla/finetune.json"), FIGURES | {"mean_iou": 0.13528640508651, "parameters": 51097791})
    track(load_params(), Path("metrics"))
    figures = runs_in()["vanilla"][0].data.metrics
    assert (figures["mean_iou"], figures["parameters"]) == (0.135286, 51097791)


def test_no_two_runs_have_one_colour_and_the_curves_have_those_of_their_runs(home):
    track(load_params(), Path("metrics"))
    colours = {name: run.data.tags["mlflow.runColor"] for name, (run,) in runs_in().items()}
    assert len({colours[name] for name in ("teacher", *RUNS)}) == 1 + len(RUNS)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours.values())
    assert colours["a03-lr01/distill"] == colours["a03-lr01"] != colours["a03-lr01/finetune"]


def test_a_curve_of_another_outcome_replaces_the_old_one(home):
    track(load_params(), Path("metrics"))
    write_curve(Path("metrics/runs/vanilla/distill_curve.csv"), 4, loss_factor=0.5)
    track(load_params(), Path("metrics"))
    (curve,) = runs_in()["vanilla/distill"]
    assert curve.histories["loss"] == [(step, 0.5 * 3 / (step + 1)) for step in range(1, 5)]


def test_the_experiment_offers_views_that_stay_as_a_user_changed_them(home):
    from mlflow import MlflowClient

    track(load_params(), Path("metrics"))
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (found,) = [one for one in client.search_experiments() if one.name == "segdistill"]
    view = json.loads(found.tags["mlflow.sharedViewState.sweep"])
    columns = json.loads(view["state"])["selectedColumns"]
    assert {"params.`alpha`", "params.`lr`", "params.`student`", "metrics.`mean_iou`"} < set(columns)
    row = runs_in()["a03-lr01"][0].data
    shown = {name.split("`")[1] for name in columns}
    assert shown <= row.params.keys() | row.metrics.keys()
    assert f"](#/experiments/{found.experiment_id}/runs?viewStateShareKey=sweep" in found.tags["mlflow.note.content"]
    client.set_experiment_tag(found.experiment_id, "mlflow.sharedViewState.sweep", "{}")
    track(load_params(), Path("metrics"))
    assert client.get_experiment(found.experiment_id).tags["mlflow.sharedViewState.sweep"] == "{}"


def test_a_half_logged_curve_is_completed(home, monkeypatch):
    monkeypatch.setattr("segdistill.tracking.curve.POINTS_PER_CALL", 7)
    whole = Path("metrics/runs/vanilla/distill_curve.csv").read_text(encoding="utf-8")
    write_curve(Path("metrics/runs/vanilla/distill_curve.csv"), 15)
    track(load_params(), Path("metrics"))
    Path("metrics/runs/vanilla/distill_curve.csv").write_text(whole, encoding="utf-8")
    track(load_params(), Path("metrics"))
    (curve,) = runs_in()["vanilla/distill"]
    assert [step for step, _ in curve.histories["loss"]] == expected_points(40)


def test_runs_without_metrics_are_left_out(home):
    params = write_params(RUNS | {"new": {"alpha": 0.5, "lr": 0.01, "teacher": "views"}})
    assert [row.run for row in rows_on_disk(params, Path("metrics"))] == ["teacher", *RUNS]


def test_a_line_that_is_still_being_written_is_no_point(tmp_path):
    curve = tmp_path / "curve.csv"
    curve.write_text(HEADER + line(1) + "2,0.01,0.1", encoding="utf-8")
    assert [point.step for point in read_curve(curve)] == [1]
