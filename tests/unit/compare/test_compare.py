"""`segdistill compare`: what differs and only that, and which of two runs is right where they differ."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.compare.pixels import COLOURS, Difference, difference_picture, pixel_differences, split_by_truth
from segdistill.compare.runs import Comparison, compare_runs
from segdistill.compare.tables import markdown
from segdistill.core.errors import UserError
from segdistill.data.prepared import PreparedData, Split
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.params import read as params_file
from segdistill.paths import PREPARED
from segdistill.prepare.run import prepare
from support.fake_metrics import sweep_params, write_metrics
from support.tiny_city import tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")
V, A, L = "vanilla", "a03", "light"


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The folder of a finished sweep of vanilla, a03 and light, as far as its metrics go."""
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


def test_a_setting_of_the_further_steps_is_shown_under_its_section(sweep):
    params = sweep_params()
    run = params.runs[A].model_copy(update={"finetune": {"steps": 9}, "export": {"opset": 20}})
    params = params.model_copy(update={"runs": params.runs | {A: run}})
    found = lines(compare_runs(params, sweep / "metrics", [A, L]).settings)
    assert found["finetune.steps"] == (9, 6)
    assert found["export.opset"] == (20, 18)
    assert found["student"] == ("deeplabv3plus_mobilenet", "deeplabv3_mobilenet_lite")


def test_figures_are_those_of_the_metrics_in_the_order_asked_for(sweep):
    found = compare_runs(sweep_params(), sweep / "metrics", [L, V, "teacher"])
    assert found.runs == (L, V, "teacher")
    figures = lines(found.figures)
    assert figures["val mIoU"] == (0.47, 0.5, 0.72)
    assert figures["val mIoU, int8 ONNX"] == (None, 0.49, None)
    assert figures["p50 ms, float32 ONNX"] == (15, 30, 90)
    assert figures["MB, int8 ONNX"] == (None, 5.5, None)


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


def test_an_unknown_run_is_refused_with_the_known_ones(sweep):
    done = call(V, "a04", "b")
    assert done.exit_code == 1
    assert done.stderr == "error: no run is named 'a04', 'b'; there are teacher, vanilla, a03, light\n"
    with pytest.raises(UserError):
        compare_runs(sweep_params(), sweep / "metrics", ["a04"])


@pytest.mark.parametrize("runs", [[], [V], [V, V]])
def test_fewer_than_two_runs_are_wrong_usage(runs, sweep):
    assert call(*runs).exit_code == 2


def test_the_terminal_shows_each_table(sweep):
    output = call(V, A, L).output
    for told in ("Settings that differ", "Figures", "Class IoU", "alpha", "53.00%", "road", V, A, L):
        assert told in output


def test_markdown_marks_the_best_of_a_line(sweep):
    output = call(V, A, "--markdown").output
    assert "| val mIoU | 50.00% | **53.00%** |" in output
    assert "| p50 ms, int8 ONNX | 20.00 | 20.00 |" in output


def test_names_of_frames_cannot_become_html():
    difference = Difference(V, A, pixels=4, by_frame=[("<img src=x onerror=alert(1)>|a", 0.5)])
    page = markdown(Comparison((V, A), (), (), ()), [difference])
    assert "&lt;img src=x onerror=alert(1)&gt;\\|a 50.0%" in page
    assert "<img" not in page


def test_outside_a_project_there_is_one_line(tmp_path, monkeypatch):
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


def test_a_difference_picture_is_grey_but_where_they_differ():
    image = np.full((1, 4, 3), 200, np.uint8)
    picture = difference_picture(image, split_by_truth(FIRST, SECOND, LABELS))
    assert picture[0].tolist() == [[120] * 3, *(list(COLOURS[part]) for part in ("first", "second", "neither"))]


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
    for run, file in ((V, small_models.int8), (A, small_models.float32)):  # two that differ, of whatever precision
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
    pictures = sorted((sweep / "differences/vanilla_a03").iterdir())
    assert [path.stem for path in pictures] == sorted(val.names)
    assert np.asarray(Image.open(pictures[0])).shape == val.images.shape[1:]

    again = call(V, A, "--out", "differences")
    assert again.exit_code == 1
    assert "differences: is there already" in again.stderr


def test_the_teacher_has_no_pixels_to_compare(sweep):
    done = call("teacher", V, "--pixels")
    assert done.exit_code == 1
    assert "found teacher" in done.stderr


def test_a_run_that_is_not_exported_is_refused_by_name(sweep):
    prepare(tinier_params().data, 0, PREPARED, workers=1)
    done = call(V, A, "--pixels")
    assert done.exit_code == 1
    assert "models/runs/vanilla/student.onnx: no such file" in done.stderr
