"""`segdistill predict`: the same classes from an image, a folder or a video."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.export.onnx_file import OnnxPredictor
from segdistill.formats.classes import ClassTable
from segdistill.formats.header import Header
from segdistill.nets.weights import save_net
from segdistill.predict import speed
from segdistill.predict.images import read_image
from segdistill.predict.model import Model
from segdistill.predict.run import class_map
from segdistill.predict.tiles import Tiling
from segdistill.prepare.cityscapes import LABEL_ID_OF_TRAIN_ID, PALETTE
from support.model_files import random_net, smooth_frame
from support.predicting import STEM, done, opened, written

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_gives_three_files_per_image_where_it_stood(files, street):
    done("images", "--model", files.float32)
    assert list(written(street / "predictions")) == [
        "color/a_color.png",
        f"color/city/{STEM}_color.png",
        "label-ids/a_labelIds.png",
        f"label-ids/city/{STEM}_labelIds.png",
        "overlay/a_overlay.jpg",
        f"overlay/city/{STEM}_overlay.jpg",
    ]


def test_each_file_says_what_the_model_says(files, street):
    done("images/a.png", "--model", files.float32)
    frame = opened(street / "images/a.png")
    classes = OnnxPredictor(files.float32, 1).classes(frame[None])[0]
    assert len(np.unique(classes)) > 2
    out = street / "predictions"
    assert np.array_equal(opened(out / "label-ids/a_labelIds.png"), LABEL_ID_OF_TRAIN_ID[classes])
    assert np.array_equal(Image.open(out / "color/a_color.png").convert("RGB"), PALETTE[classes])
    overlay = opened(out / "overlay/a_overlay.jpg").astype(int)
    assert np.abs(overlay - (frame.astype(int) + PALETTE[classes]) / 2).mean() < 6  # JPEG


def test_label_ids_are_greyscale_as_the_official_files(files, street):
    done("images/a.png", "--model", files.float32, "--write", "label-ids")
    assert Image.open(street / "predictions/label-ids/a_labelIds.png").mode == "L"


def test_alone_in_a_folder_and_again_are_the_same_bytes(files, street):
    done("images", "--model", files.int8, "--out", "one")
    done("images", "--model", files.int8, "--out", "two")
    done("images/a.png", "--model", files.int8, "--out", "alone")
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
    done("images/a.png", "--model", files.float32, "--write", "label-ids", "--out", "whole")
    done("images/a.png", "--model", files.float32, "--write", "label-ids", "--out", "tiles", "--tile", "64x80")
    assert written(street / "whole") == written(street / "tiles")


def test_each_half_of_an_overlap_is_what_its_tile_says(files):
    frame, model = smooth_frame((64, 160), 5), Model(files.float32, 1)
    left, right = (model.classes(frame[:, start : start + 96]) for start in (0, 64))
    assert not np.array_equal(left[:, 64:], right[:, :32])
    found = class_map(model.classes, Image.fromarray(frame), Tiling((64, 96), 32))
    assert np.array_equal(found, np.concatenate([left[:, :80], right[:, 16:]], axis=1))


def test_a_image_is_turned_upright_before_it_is_predicted(files, street):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth_frame((48, 64), 6)).save("turned.png", exif=exif)
    done("turned.png", "--model", files.float32, "--write", "label-ids")
    assert opened(street / "predictions/label-ids/turned_labelIds.png").shape == (64, 48)


def test_a_glob_in_quotes_finds_what_a_shell_would(files, street):
    done("images/**/*.png", "--model", files.float32, "--write", "color")
    assert list(written(street / "predictions")) == ["color/a_color.png", f"color/{STEM}_color.png"]


def test_a_image_named_twice_is_predicted_once(files, street):
    assert "1 predicted" in done("images/a.png", "images/../images/a.png", "--model", files.float32).output


def test_overwrite_replaces(files, street):
    target = street / "predictions/color/a_color.png"
    target.parent.mkdir(parents=True)
    target.write_text("old")
    done("images/a.png", "--model", files.float32, "--write", "color", "--overwrite")
    assert Image.open(target).size == (65, 49)


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
    result = done("images/a.png", "--write", "color", "--out", "by-summary")
    assert "models/runs/a03/student.int8.onnx" in result.output
    done("images/a.png", "--write", "color", "--out", "by-name", "--model", files.int8)
    assert written(street / "by-summary") == written(street / "by-name")


def test_run_means_its_int8_file_else_its_float32_file(files, street):
    folder = street / "models/runs/light"
    folder.mkdir(parents=True)
    shutil.copy(files.float32, folder / "student.onnx")
    assert "model: models/runs/light/student.onnx" in done("images/a.png", "--model", "light").output
    shutil.copy(files.int8, folder / "student.int8.onnx")
    again = done("images/a.png", "--model", "light", "--overwrite")
    assert "model: models/runs/light/student.int8.onnx" in again.output


def test_a_model_of_other_classes_brings_their_ids_and_colors(street):
    table = ClassTable(("lane", "rest"), (40, 99), ((1, 2, 3), (200, 100, 50)))
    save_net("two.safetensors", random_net(classes=2), Header.of_net("deeplabv3_mobilenet_lite", table, 16))
    done("images/a.png", "--model", "two.safetensors")
    classes = Model("two.safetensors", 1).classes(opened(street / "images/a.png").copy())
    assert np.array_equal(opened(street / "predictions/label-ids/a_labelIds.png"), np.where(classes == 0, 40, 99))
    coloured = np.asarray(Image.open(street / "predictions/color/a_color.png").convert("RGB"))
    assert np.array_equal(coloured, np.array(table.colors, np.uint8)[classes])


def test_benchmark_prints_its_conditions_and_writes_nothing(files, street, monkeypatch):
    monkeypatch.setattr(speed, "ROUNDS", 2)
    called = done("images", "--model", files.int8, "--benchmark")
    output = called.stdout
    assert "timing: round 7/7" in called.stderr
    for expected in (
        "threads 1",
        "2 images of 48x64, 49x65 pixels",
        "2 rounds after 5 of warm-up",
        "fps",
        "p50",
        "p95",
    ):
        assert expected in output
    assert not (street / "predictions").exists()


def test_names_that_are_not_ascii_and_suffixes_in_capitals_work(files, street):
    Path("images/a.png").rename("images/straße 7.PNG")
    done("images/straße 7.PNG", "--model", files.float32, "--write", "color")
    assert list(written(street / "predictions")) == ["color/straße 7_color.png"]


def test_from_python(files, street):
    model = Model(files.float32, threads=1)
    classes = model.classes(np.asarray(read_image("images/a.png")))
    assert (classes.dtype, classes.shape) == (np.uint8, (49, 65))
