"""`segdistill predict`: the same classes by whatever way a frame comes in, in files that are whole or not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from model_files import ModelFiles, random_net, smooth_frame
from segdistill.checkpoint import net_facts, save_net
from segdistill.cityscapes import LABEL_ID_OF_TRAIN_ID, PALETTE
from segdistill.class_table import ClassTable
from segdistill.cli import app
from segdistill.onnx_file import OnnxPredictor
from segdistill.predict import speed
from segdistill.predict.model import Model
from segdistill.predict.pictures import read_picture
from segdistill.predict.run import class_map
from segdistill.predict.tiles import Tiling

pytestmark = pytest.mark.usefixtures("one_thread")
STEM = "ivyport_000000_000019"


@pytest.fixture
def files(small_models) -> ModelFiles:
    return small_models


@pytest.fixture
def street(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with pictures/a.png and pictures/city/STEM_leftImg8bit.png."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures/city").mkdir(parents=True)
    for name, size_px, seed in (("a.png", (49, 65), 1), (f"city/{STEM}_leftImg8bit.png", (48, 64), 2)):
        Image.fromarray(smooth_frame(size_px, seed)).save(tmp_path / "pictures" / name)
    return tmp_path


def call(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--threads", "1"])


def done(*arguments: object):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def opened(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_folder_gives_three_files_per_picture_where_it_stood(files, street):
    done("pictures", "--model", files.float32)
    assert list(written(street / "predictions")) == [
        "color/a_color.png",
        f"color/city/{STEM}_color.png",
        "label-ids/a_labelIds.png",
        f"label-ids/city/{STEM}_labelIds.png",
        "overlay/a_overlay.jpg",
        f"overlay/city/{STEM}_overlay.jpg",
    ]


def test_each_file_says_what_the_model_says(files, street):
    done("pictures/a.png", "--model", files.float32)
    frame = opened(street / "pictures/a.png")
    classes = OnnxPredictor(files.float32, 1).classes(frame[None])[0]
    assert len(np.unique(classes)) > 2
    out = street / "predictions"
    assert np.array_equal(opened(out / "label-ids/a_labelIds.png"), LABEL_ID_OF_TRAIN_ID[classes])
    assert np.array_equal(Image.open(out / "color/a_color.png").convert("RGB"), PALETTE[classes])
    overlay = opened(out / "overlay/a_overlay.jpg").astype(int)
    assert np.abs(overlay - (frame.astype(int) + PALETTE[classes]) / 2).mean() < 6  # JPEG


def test_label_ids_are_greyscale_as_the_official_files(files, street):
    done("pictures/a.png", "--model", files.float32, "--write", "label-ids")
    assert Image.open(street / "predictions/label-ids/a_labelIds.png").mode == "L"


def test_alone_in_a_folder_and_again_are_the_same_bytes(files, street):
    done("pictures", "--model", files.int8, "--out", "one")
    done("pictures", "--model", files.int8, "--out", "two")
    done("pictures/a.png", "--model", files.int8, "--out", "alone")
    assert written(street / "one") == written(street / "two")
    alone = written(street / "alone")
    assert alone and alone.items() <= written(street / "one").items()


@pytest.mark.parametrize("size_px", [(1, 1), (1, 40), (31, 33), (32, 32), (33, 47), (49, 65), (97, 34), (63, 129)])
def test_onnx_and_safetensors_agree_at_odd_sizes(files, size_px):
    frame = smooth_frame(size_px, 3)
    expected, found = (Model(path, 1).classes(frame) for path in (files.torch, files.float32))
    assert expected.shape == found.shape == size_px
    assert (expected == found).mean() > 0.995


def test_int8_takes_odd_sizes(files):
    model = Model(files.int8, 1)
    for size_px in ((1, 1), (31, 33), (33, 47), (49, 65)):
        assert model.classes(smooth_frame(size_px)).shape == size_px


def test_a_small_frame_is_continued_by_its_border(files):
    frame = smooth_frame((20, 50), 4)
    continued = np.concatenate([frame, np.repeat(frame[-1:], 12, axis=0)])
    model = Model(files.float32, 1)
    assert np.array_equal(model.classes(frame), model.classes(continued)[:20])


def test_tiles_of_the_whole_frame_change_nothing(files, street):
    done("pictures/a.png", "--model", files.float32, "--write", "label-ids", "--out", "whole")
    done("pictures/a.png", "--model", files.float32, "--write", "label-ids", "--out", "tiles", "--tile", "64x80")
    assert written(street / "whole") == written(street / "tiles")


def test_each_half_of_an_overlap_is_what_its_tile_says(files):
    frame, model = smooth_frame((64, 160), 5), Model(files.float32, 1)
    left, right = (model.classes(frame[:, start : start + 96]) for start in (0, 64))
    assert not np.array_equal(left[:, 64:], right[:, :32])
    found = class_map(model.classes, Image.fromarray(frame), Tiling((64, 96), 32))
    assert np.array_equal(found, np.concatenate([left[:, :80], right[:, 16:]], axis=1))


def test_a_picture_is_turned_upright_before_it_is_predicted(files, street):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth_frame((48, 64), 6)).save("turned.png", exif=exif)
    done("turned.png", "--model", files.float32, "--write", "label-ids")
    assert opened(street / "predictions/label-ids/turned_labelIds.png").shape == (64, 48)


def test_a_glob_in_quotes_finds_what_a_shell_would(files, street):
    done("pictures/**/*.png", "--model", files.float32, "--write", "color")
    assert list(written(street / "predictions")) == ["color/a_color.png", f"color/{STEM}_color.png"]


def test_a_picture_named_twice_is_predicted_once(files, street):
    assert "1 predicted" in done("pictures/a.png", "pictures/../pictures/a.png", "--model", files.float32).output


def test_existing_outputs_are_refused_up_front_and_listed(files, street):
    done("pictures/a.png", "--model", files.float32, "--write", "color")
    before = written(street / "predictions")
    result = call("pictures", "--model", files.float32)
    assert result.exit_code == 1
    assert "predictions/color/a_color.png" in result.stderr
    assert "--overwrite" in result.stderr
    assert written(street / "predictions") == before


def test_overwrite_replaces(files, street):
    target = street / "predictions/color/a_color.png"
    target.parent.mkdir(parents=True)
    target.write_text("old")
    done("pictures/a.png", "--model", files.float32, "--write", "color", "--overwrite")
    assert Image.open(target).size == (65, 49)


def test_a_bad_picture_keeps_nothing_from_the_others(files, street):
    (street / "pictures/bad.png").write_text("no picture")
    (street / "pictures/worse.jpg").write_text("")
    result = call("pictures", "--model", files.float32, "--write", "color")
    assert result.exit_code == 1
    assert "2 of 4 inputs were predicted; the others were not (2):" in result.stderr
    assert "pictures/bad.png: no readable PNG or JPEG" in result.stderr
    assert "pictures/worse.jpg" in result.stderr
    assert list(written(street / "predictions")) == ["color/a_color.png", f"color/city/{STEM}_color.png"]


def test_bad_inputs_are_told_together_before_anything_is_written(files, street):
    (street / "empty").mkdir()
    (street / "notes.txt").write_text("")
    result = call("pictures", "empty", "notes.txt", "none.png", "no/*.png", "--model", files.float32)
    assert result.exit_code == 1
    for told in ("empty: holds no picture", "notes.txt: neither a picture", "none.png: no such", "no/*.png: matches"):
        assert told in result.stderr
    assert not (street / "predictions").exists()


def test_two_inputs_for_one_output_are_refused(files, street):
    shutil.copy("pictures/a.png", "a.png")
    result = call("a.png", "pictures", "--model", files.float32)
    assert result.exit_code == 1
    assert "predictions/overlay/a_overlay.jpg: of both a.png and pictures/a.png" in result.stderr


@pytest.mark.parametrize("out", ["predictions", "."])
def test_predicting_a_folder_twice_does_not_predict_the_outputs(out, files, street):
    arguments = (".", "--out", out, "--model", files.float32, "--write", "color,label-ids")
    done(*arguments)
    before = list(written(street))
    done(*arguments, "--overwrite")
    assert list(written(street)) == before


def test_without_a_model_the_one_to_ship_is_taken(files, street):
    ships = street / "models/runs/a03/student.int8.onnx"
    ships.parent.mkdir(parents=True)
    shutil.copy(files.int8, ships)
    (street / "metrics").mkdir()
    (street / "metrics/summary.json").write_text(
        json.dumps({"champion": {"path": "models/runs/a03/student.int8.onnx", "precision": "int8"}})
    )
    result = done("pictures/a.png", "--write", "color", "--out", "by-summary")
    assert "models/runs/a03/student.int8.onnx" in result.output
    done("pictures/a.png", "--write", "color", "--out", "by-name", "--model", files.int8)
    assert written(street / "by-summary") == written(street / "by-name")


@pytest.mark.parametrize(
    ("summary", "told"),
    [
        (None, "metrics/summary.json: no such file"),
        ("{", "metrics/summary.json: damaged"),
        ('{"champion": null}', "recommends no student"),
        ('{"champion": {"path": "gone.onnx"}}', "gone.onnx: no such file"),
    ],
)
def test_without_a_model_and_a_summary_there_is_one_line(summary, told, street):
    if summary is not None:
        (street / "metrics").mkdir()
        (street / "metrics/summary.json").write_text(summary)
    result = call("pictures")
    assert result.exit_code == 1
    assert told in result.stderr
    assert "--model" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["none.onnx", "text.onnx", "none.safetensors", "text.safetensors", "net.pth"])
def test_what_is_no_model_of_ours_is_refused_by_name(name, street):
    if name.startswith("text"):
        (street / name).write_text("no model")
    result = call("pictures", "--model", name)
    assert result.exit_code == 1
    assert name in result.stderr
    assert not (street / "predictions").exists()


def test_a_model_that_does_not_name_its_classes_is_refused(street):
    save_net("seven.safetensors", random_net(classes=7), net_facts("deeplabv3_mobilenet_lite", 7, 16))
    result = call("pictures", "--model", "seven.safetensors")
    assert result.exit_code == 1
    assert "seven.safetensors: gives 7 classes and does not name them; Cityscapes has 19" in result.stderr


def test_a_model_of_other_classes_brings_their_ids_and_colors(street):
    table = ClassTable(("lane", "rest"), (40, 99), ((1, 2, 3), (200, 100, 50)))
    save_net("two.safetensors", random_net(classes=2), net_facts("deeplabv3_mobilenet_lite", table, 16))
    done("pictures/a.png", "--model", "two.safetensors")
    classes = Model("two.safetensors", 1).classes(opened(street / "pictures/a.png").copy())
    assert np.array_equal(opened(street / "predictions/label-ids/a_labelIds.png"), np.where(classes == 0, 40, 99))
    coloured = np.asarray(Image.open(street / "predictions/color/a_color.png").convert("RGB"))
    assert np.array_equal(coloured, np.array(table.colors, np.uint8)[classes])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tile", "64"], "HEIGHTxWIDTH"),
        (["--tile", "8x64"], "at least 64"),
        (["--tile", "64x64", "--overlap", "33"], "at most half a tile"),
        (["--overlap", "8"], "without --tile"),
        (["--write", "colour"], "overlay, color, label-ids"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(arguments, told, street):
    result = CliRunner().invoke(app, ["predict", "pictures", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_benchmark_tells_its_conditions_and_writes_nothing(files, street, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 2)
    output = done("pictures", "--model", files.int8, "--benchmark").output
    for told in ("threads 1", "2 pictures of 48x64, 49x65 pixels", "2 rounds after 5 of warm-up", "fps", "p50", "p95"):
        assert told in output
    assert not (street / "predictions").exists()


def test_a_folder_that_cannot_be_written_is_one_line(files, street):
    (street / "out").write_text("a file")
    result = call("pictures/a.png", "--model", files.float32, "--out", "out")
    assert result.exit_code == 1
    assert "out" in result.stderr
    assert "Traceback" not in result.output
    assert "s left" not in result.stderr, "nothing is known of a pace at which nothing was done"


def test_nothing_half_written_is_left_when_the_disk_is_full(files, street, monkeypatch):
    def full(self, target, *_, **__):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(Image.Image, "save", full)
    result = call("pictures/a.png", "--model", files.float32)
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    assert written(street / "predictions") == {}


def test_a_frame_too_large_for_the_memory_is_told_with_a_remedy(files, street, monkeypatch):
    def full(self, images):
        raise MemoryError

    monkeypatch.setattr(OnnxPredictor, "classes", full)
    result = call("pictures/a.png", "--model", files.float32)
    assert result.exit_code == 1
    assert "pictures/a.png: not enough memory for 49x65 pixels at once; try --tile" in result.stderr


def test_names_that_are_not_ascii_and_suffixes_in_capitals_work(files, street):
    Path("pictures/a.png").rename("pictures/straße 7.PNG")
    done("pictures/straße 7.PNG", "--model", files.float32, "--write", "color")
    assert list(written(street / "predictions")) == ["color/straße 7_color.png"]


def test_from_python(files, street):
    model = Model(files.float32, threads=1)
    classes = model.classes(np.asarray(read_picture("pictures/a.png")))
    assert (classes.dtype, classes.shape) == (np.uint8, (49, 65))
