"""`segdistill compare`: the settings that differ, the metrics, and which of two runs is right where they differ."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.compare.pixels import COLOURS, Difference, difference_image, pixel_differences, split_by_truth
from segdistill.compare.runs import Comparison, compare_runs
from segdistill.compare.tables import markdown
from segdistill.core.errors import UserError
from segdistill.core.files import write_json
from segdistill.data.prepared import PreparedData, Split
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.params import read as params_file
from segdistill.paths import PREPARED
from segdistill.prepare.run import prepare
from support.fake_metrics import BENCHMARK, sweep_params, write_metrics, write_run
from support.tiny_city import tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")
V, A, L = "vanilla", "a03", "light"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Enter a folder with the metrics of a finished sweep of vanilla, a03 and light."""
    monkeypatch.chdir(tmp_path)
    params = sweep_params()
    write_metrics(tmp_path / "metrics")
    monkeypatch.setattr(params_file, "load_params", lambda *_: params)
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(app, ["compare", *arguments])


def lines(found) -> dict[str, tuple]:
    return {line.label: line.values for line in found}


def test_only_settings_that_differ_are_shown(sweep):
    found = compare_runs(sweep_params(), sweep / "metrics", [V, A])
    assert lines(found.settings) == {"teacher": ("none", "views"), "alpha": (0.0, 0.3)}


def test_settings_of_finetune_and_export_are_shown_under_their_section(sweep):
    params = sweep_params()
    run = params.runs[A].model_copy(update={"finetune": {"steps": 9}, "export": {"opset": 20}})
    params = params.model_copy(update={"runs": params.runs | {A: run}})
    found = lines(compare_runs(params, sweep / "metrics", [A, L]).settings)
    assert found["finetune.steps"] == (9, 6)
    assert found["export.opset"] == (20, 18)
    assert found["student"] == ("deeplabv3plus_mobilenet", "deeplabv3_mobilenet_lite")


def test_metrics_are_those_on_disk_in_the_given_order(sweep):
    found = compare_runs(sweep_params(), sweep / "metrics", [L, V, "teacher"])
    assert found.runs == (L, V, "teacher")
    metrics = lines(found.metrics)
    assert metrics["mIoU"] == (0.47, 0.5, 0.72)
    assert metrics["mIoU int8"] == (None, 0.49, None)
    assert metrics["ms float32"] == (15, 30, 90)
    assert metrics["MB int8"] == (None, 5.5, None)


def test_classes_are_those_on_which_the_runs_differ(sweep):
    # traffic_light is 0.1 for all, train is undefined; road is 2 * mIoU - 0.1.
    found = lines(compare_runs(sweep_params(), sweep / "metrics", [V, A]).classes)
    assert found == {"road": (pytest.approx(0.9), pytest.approx(0.96))}


def test_runs_that_are_not_compared_need_not_be_done(sweep):
    for file in (sweep / "metrics/runs/light").glob("*.json"):
        file.unlink()
    assert call(V, A).exit_code == 0
    missing = call(V, L)
    assert missing.exit_code == 1
    assert "metrics/runs/light/distill.json: no such file" in missing.stderr


def test_a_run_is_compared_with_its_repetitions(sweep):
    write_run(sweep / "metrics", f"{A}-1", 0.4, 0.55, 0.5)
    benchmark = BENCHMARK | {"models": BENCHMARK["models"] | {f"{A}-1": "small_os16"}}
    write_json(sweep / "metrics/benchmark.json", benchmark)
    found = compare_runs(sweep_params(seeds=(0, 1, 2)), sweep / "metrics", [A, f"{A}-1"])
    assert lines(found.settings) == {"seed": (0, 1)}
    assert lines(found.metrics)["mIoU"] == (0.53, 0.55)


def test_an_unknown_run_is_refused_with_the_known_ones(sweep):
    done = call(V, "a04", "b")
    assert done.exit_code == 1
    assert done.stderr == "error: no run is named 'a04', 'b'; there are teacher, vanilla, a03, light\n"
    with pytest.raises(UserError):
        compare_runs(sweep_params(), sweep / "metrics", ["a04"])


@pytest.mark.parametrize("runs", [[], [V], [V, V]])
def test_fewer_than_two_runs_are_wrong_usage(runs, sweep):
    assert call(*runs).exit_code == 2


def test_terminal_shows_each_table(sweep):
    output = call(V, A, L).output
    for text in ("Settings that differ", "Metrics", "Class IoU", "alpha", "53.00%", "road", V, A, L):
        assert text in output


def test_markdown_marks_the_best_of_a_line(sweep):
    output = call(V, A, "--markdown").output
    assert "| mIoU | 50.00% | **53.00%** |" in output
    assert "| ms int8 | 20.00 | 20.00 |" in output


def test_names_of_frames_cannot_become_html():
    difference = Difference(V, A, pixels=4, by_frame=[("<img src=x onerror=alert(1)>|a", 0.5)])
    page = markdown(Comparison((V, A), (), (), ()), [difference])
    assert "&lt;img src=x onerror=alert(1)&gt;\\|a 50.0%" in page
    assert "<img" not in page


def test_outside_a_project_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(V, A)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: params.yaml: no such file")
    assert done.stderr.count("\n") == 1


FIRST = np.array([[0, 1, 2, 3]], np.uint8)
SECOND = np.array([[0, 2, 1, 4]], np.uint8)
LABELS = np.array([[0, 1, 1, 5]], np.uint8)
VOID = np.array([[255, 255, 1, 5]], np.uint8)


def test_pixels_are_split_by_who_is_right():
    parts = {name: mask.tolist() for name, mask in split_by_truth(FIRST, SECOND, LABELS).items()}
    assert parts == {
        "first": [[False, True, False, False]],
        "second": [[False, False, True, False]],
        "neither": [[False, False, False, True]],
        "void": [[False] * 4],
    }


def test_shares_are_of_all_pixels_of_all_frames():
    found = Difference(V, A)
    found.add("one", split_by_truth(FIRST, SECOND, LABELS))
    found.add("two", split_by_truth(FIRST, SECOND, VOID))
    found.add("three", split_by_truth(FIRST, FIRST, LABELS))
    assert found.differing == 6 / 12
    assert (found.first_right, found.second_right, found.neither_right) == (1 / 12, 2 / 12, 2 / 12)
    assert found.counts["void"] == 1
    assert found.frames == [("one", 0.75), ("two", 0.75), ("three", 0.0)]


def test_difference_image_is_grey_but_where_they_differ():
    image = np.full((1, 4, 3), 200, np.uint8)
    shown = difference_image(image, split_by_truth(FIRST, SECOND, LABELS))
    assert shown[0].tolist() == [[120] * 3, *(list(COLOURS[part]) for part in ("first", "second", "neither"))]


def test_every_pair_is_compared_on_every_frame():
    split = Split(np.zeros((3, 4, 4, 3), np.uint8), np.zeros((3, 4, 4), np.uint8), ("a", "b", "c"))
    models = {
        name: (lambda images, value=value: np.full((1, 4, 4), value, np.uint8)) for value, name in enumerate("xyz")
    }
    found = pixel_differences(models, split)
    assert [(pair.first, pair.second) for pair in found] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert [(pair.first_right, pair.second_right, pair.neither_right) for pair in found] == [
        (1, 0, 0),
        (1, 0, 0),
        (0, 0, 1),
    ]


def test_pixels_of_exported_runs_are_compared_on_val(sweep, small_models):
    prepare(tinier_params().data, 0, PREPARED, workers=1)
    for run, file in ((V, small_models.int8), (A, small_models.float32)):  # two that differ, not only in precision
        (sweep / "models/runs" / run).mkdir(parents=True)
        shutil.copy(file, sweep / "models/runs" / run / "student.int8.onnx")
    done = call(V, A, "--pixels", "--precision", "int8", "--out", "differences", "--markdown", "--threads", "1")
    assert done.exit_code == 0, done.output

    val = PreparedData.open().val
    maps = [
        OnnxPredictor(sweep / f"models/runs/{run}/student.int8.onnx", 1).classes(np.array(val.images)) for run in (V, A)
    ]
    share = (maps[0] != maps[1]).mean()
    assert 0 < share < 1
    assert f"| vanilla, a03 | {share:.2%} |" in done.output
    images = sorted((sweep / "differences/vanilla_a03").iterdir())
    assert [path.stem for path in images] == sorted(val.names)
    assert np.asarray(Image.open(images[0])).shape == val.images.shape[1:]

    again = call(V, A, "--out", "differences")
    assert again.exit_code == 1
    assert "differences: is there already" in again.stderr


def test_teacher_has_no_pixels_to_compare(sweep):
    done = call("teacher", V, "--pixels")
    assert done.exit_code == 1
    assert "found teacher" in done.stderr


def test_a_run_that_is_not_exported_is_refused_by_name(sweep):
    prepare(tinier_params().data, 0, PREPARED, workers=1)
    done = call(V, A, "--pixels")
    assert done.exit_code == 1
    assert "models/runs/vanilla/student.onnx: no such file" in done.stderr
