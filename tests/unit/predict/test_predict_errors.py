"""What `segdistill predict` refuses: one message, no half-written output, and the other inputs are predicted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.formats.header import Header
from segdistill.nets.weights import save_net
from segdistill.predict.images import read_image
from support.model_files import random_net
from support.predicting import STEM, call, done, written

pytestmark = pytest.mark.usefixtures("one_thread")


def test_existing_outputs_are_refused_up_front_and_listed(files, street):
    done("images/a.png", "--model", files.float32, "--write", "color")
    before = written(street / "predictions")
    result = call("images", "--model", files.float32)
    assert result.exit_code == 1
    assert "predictions/color/a_color.png" in result.stderr
    assert "--overwrite" in result.stderr
    assert written(street / "predictions") == before


def test_a_bad_image_keeps_nothing_from_the_others(files, street):
    (street / "images/bad.png").write_text("no image")
    (street / "images/worse.jpg").write_text("")
    result = call("images", "--model", files.float32, "--write", "color")
    assert result.exit_code == 1
    assert "2 of 4 inputs were predicted; the others were not (2):" in result.stderr
    assert "images/bad.png: no readable PNG, JPEG, WebP, BMP or TIFF" in result.stderr
    assert "images/worse.jpg" in result.stderr
    assert list(written(street / "predictions")) == ["color/a_color.png", f"color/city/{STEM}_color.png"]


def test_an_image_beyond_the_memory_keeps_nothing_from_the_others(files, street, monkeypatch):
    def beyond(path, **options):
        if path.name == "a.png":
            raise MemoryError
        return read_image(path, **options)

    monkeypatch.setattr("segdistill.predict.run.read_image", beyond)
    result = call("images", "--model", files.float32, "--write", "color", "--tile", "64x64")
    assert result.exit_code == 1
    assert "images/a.png: not enough memory for an input of that size" in result.stderr
    assert list(written(street / "predictions")) == [f"color/city/{STEM}_color.png"]


def test_bad_inputs_are_reported_together_before_anything_is_written(files, street):
    (street / "empty").mkdir()
    (street / "notes.txt").write_text("")
    result = call("images", "empty", "notes.txt", "none.png", "no/*.png", "--model", files.float32)
    assert result.exit_code == 1
    for expected in ("empty: holds no image", "notes.txt: neither an image", "none.png: no such", "no/*.png: matches"):
        assert expected in result.stderr
    assert not (street / "predictions").exists()


def test_two_inputs_for_one_output_are_refused(files, street):
    shutil.copy("images/a.png", "a.png")
    result = call("a.png", "images", "--model", files.float32)
    assert result.exit_code == 1
    assert "predictions/overlay/a_overlay.jpg: the output of both a.png and images/a.png" in result.stderr


def test_output_name_that_is_too_long_does_not_stop_the_others(files, street):
    name = "x" * 250  # allowed as it is, and too long with the suffix of an output
    shutil.copy("images/a.png", f"images/{name}.png")
    result = call("images", "--model", files.float32, "--write", "color,label-ids")
    assert result.exit_code == 1
    assert "2 of 3 inputs were predicted; the others were not (1):" in result.stderr
    assert f"images/{name}.png: File name too long" in result.stderr
    assert len(written(street / "predictions")) == 4


def test_folder_in_the_place_of_an_output_does_not_stop_the_others(files, street):
    (street / "predictions/color/a_color.png/inside").mkdir(parents=True)
    result = call("images", "--model", files.float32, "--write", "color", "--overwrite")
    assert result.exit_code == 1
    assert "1 of 2 inputs were predicted" in result.stderr
    assert list(written(street / "predictions")) == [f"color/city/{STEM}_color.png"]


def test_unknown_run_is_refused_with_the_runs_there_are(street):
    (street / "models/runs/light").mkdir(parents=True)
    result = call("images", "--model", "heavy")
    assert result.exit_code == 1
    assert "--model: found 'heavy'; no such file, and no such run in models/runs (runs there: light)" in result.stderr


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (None, "metrics/summary.json: no such file"),
        ("{", "metrics/summary.json: damaged"),
        ('{"champion": null}', "recommends no student"),
        ('{"champion": {"path": "gone.onnx"}}', "gone.onnx: no such file"),
    ],
)
def test_without_a_model_and_a_summary_there_is_one_line(summary, expected, street):
    if summary is not None:
        (street / "metrics").mkdir()
        (street / "metrics/summary.json").write_text(summary)
    result = call("images")
    assert result.exit_code == 1
    assert expected in result.stderr
    assert "--model" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["none.onnx", "text.onnx", "none.safetensors", "text.safetensors", "net.pth"])
def test_file_of_no_student_is_refused_by_name(name, street):
    if name.startswith("text"):
        (street / name).write_text("no model")
    result = call("images", "--model", name)
    assert result.exit_code == 1
    assert name in result.stderr
    assert not (street / "predictions").exists()


def test_model_without_a_class_table_is_refused(street):
    save_net("seven.safetensors", random_net(classes=7), Header.of_net("deeplabv3_mobilenet_lite", 7, 16))
    result = call("images", "--model", "seven.safetensors")
    assert result.exit_code == 1
    assert "seven.safetensors: its header does not name the classes" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tile", "64"], "HEIGHTxWIDTH"),
        (["--tile", "8x64"], "at least 64"),
        (["--tile", "64x64", "--overlap", "33"], "at most half a tile"),
        (["--overlap", "8"], "without --tile"),
        (["--write", "colour"], "overlay, color, label-ids"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments, expected, street):
    result = CliRunner().invoke(app, ["predict", "images", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert expected in result.stderr


def test_a_folder_that_cannot_be_written_is_one_line(files, street):
    (street / "out").write_text("a file")
    result = call("images/a.png", "--model", files.float32, "--out", "out")
    assert result.exit_code == 1
    assert "out" in result.stderr
    assert "Traceback" not in result.output


def test_nothing_half_written_is_left_when_the_disk_is_full(files, street, monkeypatch):
    def full(self, target, *_, **__):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Image.Image, "save", full)
    result = call("images/a.png", "--model", files.float32)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert written(street / "predictions") == {}


def test_frame_too_large_for_the_memory_is_reported_with_a_remedy(files, street, monkeypatch):
    def full(self, images):
        raise MemoryError

    monkeypatch.setattr(OnnxPredictor, "classes", full)
    result = call("images/a.png", "--model", files.float32)
    assert result.exit_code == 1
    assert "images/a.png: not enough memory for 49x65 pixels at once; try --tile" in result.stderr
