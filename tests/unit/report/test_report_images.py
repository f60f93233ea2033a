"""Frames chosen by rule, where two models differ, confused classes and tiles, against values worked out by hand."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.report.charts import confusion_chart, matrices
from segdistill.report.images import choose_frames, image_strips, pixel_states
from segdistill.report.sections import mistakes_table, tiles
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import sweep_params, write_metrics


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_metrics(tmp_path_factory.mktemp("sweep") / "metrics")


@pytest.fixture(scope="module")
def summary(metrics: Path) -> Summary:
    return summarise(sweep_params(), metrics)


def chosen(student: list, control: list) -> list[tuple[str, int]]:
    return [(why, index) for why, index, _ in choose_frames(dict(enumerate(student)), dict(enumerate(control)))]


def test_frames_are_those_of_largest_median_and_smallest_difference() -> None:
    assert chosen([0.5, 0.9, 0.1, 0.4, 0.6], [0.5] * 5) == [
        ("Largest gain", 1),
        ("Median frame", 0),
        ("Largest loss", 2),
    ]
    # Of equal ones the first, and each frame once.
    assert chosen([0.4, 0.4, 0.5, 0.5], [0.5] * 4) == [("No gain on any frame", 2), ("Median frame", 0)]
    assert chosen([0.2, 0.5], [0.5, 0.5]) == [("No gain on any frame", 1), ("Median frame", 0)]
    assert chosen([None], [0.5]) == []


def test_a_loss_is_not_headed_as_a_gain() -> None:
    assert chosen([0.4, None, 0.5], [0.5, 0.1, None]) == [("Smallest loss", 0)]
    assert [why for why, _ in chosen([0.4, 0.3, 0.2], [0.5] * 3)] == ["Smallest loss", "Median frame", "Largest loss"]
    assert [why for why, _ in chosen([0.6, 0.7, 0.8], [0.5] * 3)] == ["Largest gain", "Median frame", "Smallest gain"]


def test_each_pixel_has_one_state() -> None:
    truth, student, control = (
        np.array([row], np.uint8) for row in ([255, 1, 1, 1, 1], [1, 1, 2, 1, 2], [1, 1, 2, 2, 1])
    )
    assert pixel_states(truth, student, control).tolist() == [[0, 1, 2, 3, 4]]


def test_strips_show_the_chosen_frames(summary: Summary, metrics: Path) -> None:
    strips = image_strips(summary, metrics)
    # a03 against vanilla: 0, 32, 48, 0, 16 pixels of 128 wrong against 64, 32, 32, 0, 16.
    assert [(strip.head, strip.frame) for strip in strips.strips] == [
        ("Largest gain: +50.0 points of mIoU", "frame 0, city_000000_000000"),
        ("Median frame: +0.0 points of mIoU", "frame 3, city_000000_000003"),
        ("Largest loss: \N{MINUS SIGN}12.5 points of mIoU", "frame 2, city_000000_000002"),
    ]
    assert [(image.caption, image.score) for image in strips.strips[0].images] == [
        ("image", ""),
        ("truth", ""),
        ("teacher", "100.0%"),
        ("vanilla (control)", "50.0%"),
        ("a03", "100.0%"),
        ("where they differ", "only a03 right 50.0%, only vanilla 0.0%"),
    ]
    content = base64.b64decode(strips.strips[0].images[5].address.partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as image:
        colors = image.convert("RGB").getcolors()
    assert sorted(colors) == [(64, (31, 95, 191)), (64, (236, 238, 242))]
    assert [name for name, _ in strips.states] == ["both right", "both wrong", "only a03 right", "only vanilla right"]
    assert "a03 is the run to ship" in strips.rule
    assert "of all 5 frames of val" in strips.rule


def test_strips_say_when_the_control_is_another_network(summary: Summary, metrics: Path) -> None:
    rows = [replace(row, float32_mean_iou=0.6) if row.run == "light" else row for row in summary.rows]
    rule = image_strips(of_rows(rows, {}), metrics).rule
    assert "light is furthest above that of vanilla" in rule
    assert "another network (deeplabv3plus_mobilenet)" in rule


def test_without_a_distilled_run_there_is_nothing_to_compare(summary: Summary, metrics: Path) -> None:
    rows = [row for row in summary.rows if row.role != "student"]
    assert image_strips(of_rows(rows, {}), metrics).strips == []
    assert "no two runs with a score" in image_strips(of_rows(rows, {}), metrics).rule
    assert [matrix.label for matrix in matrices(of_rows(rows, {}), metrics)] == ["vanilla (control)", "teacher"]


def test_images_and_mistakes_are_of_the_model_to_ship(summary: Summary, metrics: Path) -> None:
    rows = [replace(row, int8_mean_iou=0.9) if row.run == "vanilla" else row for row in summary.rows]
    changed = of_rows(rows, {})
    assert (changed.champion.run, changed.shown.run, changed.compared_with.run) == ("vanilla", "vanilla", "a03")
    strips = image_strips(changed, metrics)
    assert strips.strips[0].images[4].caption == "vanilla (control)"
    assert "vanilla is a control, so it is compared with the best distilled run" in strips.rule
    assert [matrix.label for matrix in matrices(changed, metrics)] == ["vanilla (control)", "a03", "teacher"]


def test_confusion_is_shown_in_shares_with_its_counts(summary: Summary, metrics: Path) -> None:
    found = matrices(summary, metrics)
    assert [matrix.label for matrix in found] == ["a03", "vanilla (control)", "teacher"]
    chart = confusion_chart(found)
    student, control, teacher = chart["data"]
    # Of 5 x 128 pixels of road a03 predicts 96 as traffic light, vanilla 144.
    assert student["z"] == [[85, 15, 0], [None] * 3, [None] * 3]
    assert student["customdata"][0] == [544, 96, 0]
    assert control["z"][0] == [77.5, 22.5, 0]
    assert teacher["text"] == [["100", "", ""], [""] * 3, [""] * 3]
    assert [trace["visible"] for trace in chart["data"]] == [True, False, False]


def test_largest_mistakes_are_listed(summary: Summary, metrics: Path) -> None:
    table = mistakes_table(matrices(summary, metrics))
    assert [head.text for head in table.heads[:3]] == ["Is", "Predicted as", "Pixels"]
    assert [head.text for head in table.heads[3:]] == ["a03", "vanilla (control)", "teacher"]
    (line,) = table.lines
    assert line.name == "road"
    assert [cell.text for cell in line.cells] == ["traffic light", "96", "15.0%", "22.5%", "0.0%"]
    assert mistakes_table([]) is None


def test_tiles_compare_each_number_with_another(summary: Summary) -> None:
    assert [tuple(tile) for tile in tiles(summary)] == [
        (
            "val mIoU, int8 ONNX",
            "52.5%",
            "+3.5 points against vanilla (both int8); one seed cannot tell this from chance",
        ),
        ("p50 per 64x128 frame, 2 threads", "20.0 ms", "end to end; the teacher: 90.0 ms in float32 ONNX"),
        ("int8 ONNX file", "5.5 MB", "12% of the teacher's parameters"),
        (
            "mIoU against the teacher",
            "\N{MINUS SIGN}19.5 points",
            "which has 72.0%, not quantized; the same class on 90% of pixels",
        ),
    ]
    scored = of_rows([replace(row, int8_unseen_mean_iou=0.4) for row in summary.rows], {})
    assert tiles(scored)[0].against.endswith("; one seed cannot tell this from chance; mIoU 40.0% on the unseen drives")
    blank = {"onnx_int8_p50_ms": None, "onnx_float32_p50_ms": None}
    untimed = tiles(of_rows([replace(row, **blank) for row in summary.rows], {}))
    assert not any(tile.number.endswith("ms") for tile in untimed)
    busy = of_rows(summary.rows, {"conditions": {"load_1min_after": 9.0, "cpus": 2}})
    assert tiles(busy)[1].against == "not reliable: busy machine"
