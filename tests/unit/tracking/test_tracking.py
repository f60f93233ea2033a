"""MLflow as a view of metrics/: every row, metric, point and image exactly once."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from segdistill.core.files import read_json
from segdistill.params.read import load_params
from segdistill.tracking.mlflow import track
from segdistill.tracking.rows import row_of, rows_on_disk
from support.sweep_on_disk import (
    HEADER,
    IMAGE_KEY,
    METRICS,
    RUNS,
    expected_points,
    line,
    logged_images,
    runs_in,
    write,
    write_curve,
    write_params,
    write_step_images,
)

STEPS = 6  # of distilling, in the tiny profile


def count(found: dict[str, list]) -> tuple[int, int]:
    runs = [run for same in found.values() for run in same]
    return len(runs), sum(len(points) for run in runs for points in run.histories.values())


def steps_of(run, name: str) -> list[int]:
    return [step for step, _ in run.histories[name]]


def test_a_row_has_params_metrics_curve_and_files(home, capfd):
    assert track(load_params(), Path("metrics"))
    assert capfd.readouterr() == ("", "")
    found = runs_in()
    assert found.keys() == {"teacher", *RUNS}
    assert all(len(same) == 1 for same in found.values())
    (row,) = found["a03-lr01"]
    assert row.data.params | {"alpha": "0.3", "lr": "0.01", "temperature": "1", "crop": "64x64"} == row.data.params
    assert row.data.params["student"] == "deeplabv3plus_mobilenet"
    assert row.data.params["teacher_arch"] == "deeplabv3plus_mobilenet"
    assert "teacher_arch" not in found["vanilla"][0].data.params
    metrics = row.data.metrics
    assert (metrics["val/mean_iou"], metrics["distilled/mean_iou"], metrics["onnx_int8/mean_iou"]) == (0.3, 0.2, 0.29)
    assert (metrics["torch/p50_ms"], metrics["onnx_int8/p50_ms"], metrics["onnx_int8/mb"]) == (25, 25, 20)
    assert row.data.tags["segdistill.current"] == "true"
    assert row.info.status == "FINISHED"
    (data,) = row.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("synthetic city", METRICS["data_fingerprint"][:12])
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    images = ["val/00001_image.png", "val/00001_student.png"]
    assert row.files == ["metrics/distill.json", "metrics/export.json", "metrics/finetune.json", *images]
    notes = {name: run.data.tags["mlflow.note.content"] for name, (run,) in found.items()}
    assert {name: len(note.split("  \n")) for name, note in notes.items()} == dict.fromkeys(found, 2)


def test_row_of_a_run_with_both_weights_names_them_and_no_alpha(home):
    params = load_params()
    raw = params.model_dump()
    raw["runs"]["a03-lr01"] |= {"alpha": None, "label_weight": 1.0, "distill_weight": 0.8}
    raw["runs"]["a03-lr01"] |= {"finetune": {"label_weight": 1.0, "distill_weight": 0.5}}
    row = row_of(type(params).model_validate(raw), "a03-lr01", "data")
    found = {name: value for name, value in row.params.items() if "alpha" in name or "weight" in name}
    finetune = {"finetune_label_weight": "1", "finetune_distill_weight": "0.5"}
    assert found == {"label_weight": "1", "distill_weight": "0.8"} | finetune
    assert "with weight 0.8 and from the labels with 1" in row.tags["mlflow.note.content"]
    assert row.key != row_of(params, "a03-lr01", "data").key


def test_finetuning_continues_the_curve_of_distilling(home):
    write_curve(Path("metrics/runs/a03-lr01/distill_curve.csv"), STEPS)
    assert track(load_params(), Path("metrics"))
    (row,) = runs_in()["a03-lr01"]
    assert steps_of(row, "curve/loss") == expected_points(STEPS + 5)
    assert steps_of(row, "curve/holdout_mean_iou") == [5, STEPS + 5]
    assert steps_of(runs_in()["teacher"][0], "curve/loss") == [1, 2, 3]


def test_a_run_starts_and_ends_with_its_training(home):
    folder = Path("metrics/runs/vanilla")
    write_step_images(folder / "distill_images", 0)
    os.utime(folder / "distill_images/00012_truth.png", (1_700_000_000, 1_700_000_000))
    os.utime(folder / "finetune.json", (1_700_000_600, 1_700_000_600))
    assert track(load_params(), Path("metrics"))
    info = runs_in()["vanilla"][0].info
    assert (info.start_time, info.end_time) == (1_700_000_000_000, 1_700_000_600_000)


def test_the_bar_is_for_terminals(home, monkeypatch, capfd):
    assert track(load_params(), Path("metrics"), shows_progress=True)
    assert capfd.readouterr() == ("", "")
    shown = []

    class Bar(contextlib.nullcontext):
        def __init__(self, _: str, total: int, unit: str) -> None:
            super().__init__(self)
            shown.append(total)

        def advance(self) -> None:
            shown.append("run")

    monkeypatch.setattr("segdistill.tracking.mlflow.Progress", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert track(load_params(), Path("metrics"), shows_progress=True)
    assert shown == [3, *["run"] * 3], "the teacher and two runs"


def test_images_by_step_are_there_once_however_often_it_is_tracked(home):
    folder = Path("metrics/runs/vanilla/distill_images")
    write_step_images(folder, 0, 5)
    assert track(load_params(), Path("metrics"))
    (row,) = runs_in()["vanilla"]
    assert logged_images(row) == [(IMAGE_KEY, 0), (IMAGE_KEY, 5)]
    assert row.data.tags["mlflow.loggedImages"] == "True"
    write_step_images(folder, 0, 5, STEPS)
    write_step_images(Path("metrics/runs/vanilla/finetune_images"), 0, 3)  # its first one is of the same network
    assert track(load_params(), Path("metrics"))
    assert track(load_params(), Path("metrics"))
    assert logged_images(row) == [(IMAGE_KEY, step) for step in (0, 5, STEPS, STEPS + 3)]


def test_tracking_again_adds_nothing_and_a_changed_metric_one_point(home):
    assert track(load_params(), Path("metrics"))
    first = count(runs_in())
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == first
    write(Path("metrics/runs/vanilla/finetune.json"), METRICS | {"mean_loss": 1.5})
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == (first[0], first[1] + 1)
    assert runs_in()["vanilla"][0].data.metrics["val/mean_loss"] == 1.5


@pytest.mark.parametrize("deleted", ["runs", "experiment"])
def test_what_a_user_deleted_in_mlflow_is_there_again(home, deleted):
    from mlflow import MlflowClient

    assert track(load_params(), Path("metrics"))
    first = count(runs_in())
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    if deleted == "experiment":
        client.delete_experiment(client.get_experiment_by_name("segdistill").experiment_id)
    else:
        for (row,) in runs_in().values():
            client.delete_run(row.info.run_id)
        assert runs_in() == {}
    assert track(load_params(), Path("metrics"))
    assert count(runs_in()) == first


def test_variables_of_an_outer_mlflow_job_change_nothing(home, monkeypatch, capfd):
    """MLflow sets them for `mlflow run` and for jobs on its platforms."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert track(load_params(), Path("metrics"))
    assert capfd.readouterr() == ("", "")
    found = runs_in()
    assert {name: len(same) for name, same in found.items()} == dict.fromkeys(("teacher", *RUNS), 1)
    assert "0123456789abcdef0123456789abcdef" not in {row.info.run_id for (row,) in found.values()}


def test_a_changed_alpha_is_another_row_and_the_old_one_stays(home):
    track(load_params(), Path("metrics"))
    track(write_params(RUNS | {"a03-lr01": RUNS["a03-lr01"] | {"alpha": 0.4}}), Path("metrics"))
    found = runs_in()
    current = {run.data.params["alpha"]: run.data.tags["segdistill.current"] for run in found["a03-lr01"]}
    assert current == {"0.3": "false", "0.4": "true"}
    assert len(found["vanilla"]) == 1
    track(write_params(RUNS), Path("metrics"))  # back again: the old row is the current one
    found = runs_in()
    current = {run.data.params["alpha"]: run.data.tags["segdistill.current"] for run in found["a03-lr01"]}
    assert current == {"0.3": "true", "0.4": "false"}


def test_runs_that_the_sweep_has_lost_are_no_longer_current(home):
    def current() -> set[str]:
        found = runs_in()
        return {name for name, same in found.items() if same[0].data.tags["segdistill.current"] == "true"}

    track(load_params(), Path("metrics"))
    assert current() == {"teacher", *RUNS}
    track(write_params({"vanilla": RUNS["vanilla"]}), Path("metrics"))
    assert current() == {"teacher", "vanilla"}
    assert runs_in()["a03-lr01"][0].data.metrics["val/mean_iou"] == 0.3, "it is old, and there"
    track(write_params(RUNS), Path("metrics"))
    assert current() == {"teacher", *RUNS}


def test_metrics_on_the_unseen_drives_have_names_of_their_own(home):
    write(Path("metrics/runs/vanilla/finetune.json"), METRICS | {"unseen": {"mean_iou": 0.25}})
    exported = read_json("metrics/runs/vanilla/export.json")
    exported["int8"]["unseen"] = {"mean_iou": 0.24}
    write(Path("metrics/runs/vanilla/export.json"), exported)
    track(load_params(), Path("metrics"))
    metrics = runs_in()["vanilla"][0].data.metrics
    assert (metrics["unseen/mean_iou"], metrics["onnx_int8/unseen/mean_iou"]) == (0.25, 0.24)
    assert (metrics["val/mean_iou"], metrics["onnx_int8/mean_iou"]) == (0.3, 0.29)


def test_metrics_are_as_long_as_a_column_is_wide_and_counts_are_whole(home):
    write(Path("metrics/runs/vanilla/finetune.json"), METRICS | {"mean_iou": 0.13528640508651, "parameters": 51097791})
    track(load_params(), Path("metrics"))
    metrics = runs_in()["vanilla"][0].data.metrics
    assert (metrics["val/mean_iou"], metrics["val/parameters"]) == (0.135286, 51097791)


def test_charts_of_curves_come_first(home):
    """MLflow sorts its sections of charts by the group that names of metrics begin with."""
    track(load_params(), Path("metrics"))
    for (run,) in runs_in().values():
        assert min(name.partition("/")[0] for name in run.data.metrics) == "curve"


def test_no_two_runs_have_one_colour(home):
    track(load_params(), Path("metrics"))
    colours = [run.data.tags["mlflow.runColor"] for (run,) in runs_in().values()]
    assert len(set(colours)) == 1 + len(RUNS)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


def test_a_curve_of_another_outcome_replaces_the_old_one(home):
    track(load_params(), Path("metrics"))
    write_curve(Path("metrics/runs/vanilla/distill_curve.csv"), 4, loss_factor=0.5)
    write_curve(Path("metrics/runs/vanilla/finetune_curve.csv"), 0)
    track(load_params(), Path("metrics"))
    (row,) = runs_in()["vanilla"]
    assert row.histories["curve/loss"] == [(step, 0.5 * 3 / (step + 1)) for step in range(1, 5)]


def test_the_note_of_the_experiment_leads_to_its_runs_and_stays_as_a_user_changed_it(home):
    from mlflow import MlflowClient

    track(load_params(), Path("metrics"))
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    (found,) = [one for one in client.search_experiments() if one.name == "segdistill"]
    table, curves = re.findall(r"\]\(#/experiments/\d+/runs\?(\S+)\)", found.tags["mlflow.note.content"])
    query = {name: values[0] for name, values in parse_qs(table).items()}
    assert parse_qs(curves)["compareRunsMode"] == ["CHART"]
    order = [f"{query['orderByKey']} DESC"]
    shown = client.search_runs([found.experiment_id], query["searchFilter"], order_by=order)
    assert {run.info.run_name for run in shown} == {"teacher", *RUNS}
    assert shown[0].info.run_name == "teacher", "the most accurate first"
    client.set_experiment_tag(found.experiment_id, "mlflow.note.content", "mine")
    track(load_params(), Path("metrics"))
    assert client.get_experiment(found.experiment_id).tags["mlflow.note.content"] == "mine"


def test_a_half_logged_curve_is_completed(home, monkeypatch):
    monkeypatch.setattr("segdistill.tracking.mlflow.POINTS_PER_CALL", 7)
    curve = Path("metrics/runs/vanilla/distill_curve.csv")
    write_curve(Path("metrics/runs/vanilla/finetune_curve.csv"), 0)
    write_curve(curve, 15)
    track(load_params(), Path("metrics"))
    write_curve(curve, 40)
    track(load_params(), Path("metrics"))
    (row,) = runs_in()["vanilla"]
    assert steps_of(row, "curve/loss") == expected_points(40)


def test_runs_without_metrics_are_left_out(home):
    params = write_params(RUNS | {"new": dict(RUNS["a03-lr01"])})
    assert [row.run for row in rows_on_disk(params, Path("metrics"))] == ["teacher", *RUNS]


def test_a_line_that_is_still_being_written_is_no_point(home):
    Path("metrics/teacher_curve.csv").write_text(HEADER + line(1) + "2,0.01,0.1", encoding="utf-8")
    row = rows_on_disk(load_params(), Path("metrics"))[0]
    assert [point.step for point in row.points] == [1]


def test_a_store_of_an_earlier_version_shows_no_curves_as_rows(home):
    """There, a curve was a run of its own."""
    from mlflow import MlflowClient

    track(load_params(), Path("metrics"))
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    tags = {"segdistill.run": "vanilla", "segdistill.curve": "x/distill", "segdistill.current": "true"}
    old = client.create_run(client.get_experiment_by_name("segdistill").experiment_id, tags=tags)
    track(load_params(), Path("metrics"))
    assert client.get_run(old.info.run_id).data.tags["segdistill.current"] == "false"
