"""Frames chosen by rule, where two models differ, and what is taken for what: against values worked out by hand."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.report.confusion import confusion_figure, matrices, mistakes_table
from segdistill.report.pictures import choose_frames, picture_strips, pixel_states
from segdistill.report.tiles import tiles
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import sweep_params, write_metrics


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_metrics(tmp_path_factory.mktemp("sweep") / "metrics")


@pytest.fixture(scope="module")
def summary(metrics: Path) -> Summary:
    return summarise(sweep_params(), metrics)


def chosen(student: list, control: list) -> list[tuple[str, int]]:
    return [
        (why.split()[0], index) for why, index, _ in choose_frames(dict(enumerate(student)), dict(enumerate(control)))
    ]


def test_frames_are_the_largest_median_and_smallest_gain() -> None:
    assert chosen([0.5, 0.9, 0.1, 0.4, 0.6], [0.5] * 5) == [("Largest", 1), ("Median", 0), ("Smallest", 2)]
    assert chosen([0.4, 0.4, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]) == [
        ("Largest", 2),
        ("Median", 0),
    ]  # of equal ones the first
    assert chosen([0.4, None, 0.5], [0.5, 0.1, None]) == [("Largest", 0)]
    assert chosen([0.2, 0.5], [0.5, 0.5]) == [("Largest", 1), ("Median", 0)]
    assert chosen([None], [0.5]) == []


def test_each_pixel_has_one_state() -> None:
    truth, student, control = (
        np.array([row], np.uint8) for row in ([255, 1, 1, 1, 1], [1, 1, 2, 1, 2], [1, 1, 2, 2, 1])
    )
    assert pixel_states(truth, student, control).tolist() == [[0, 1, 2, 3, 4]]


def test_strips_show_the_chosen_frames(summary: Summary, metrics: Path) -> None:
    strips = picture_strips(summary, metrics)
    heads = re.findall(r"<h3>(.*?)</h3>", strips.pictures)
    # a03 against vanilla: 0, 32, 48, 0, 16 pixels of 128 wrong against 64, 32, 32, 0, 16.
    assert [re.sub("<.*?>", "", head) for head in heads] == [
        "Largest gain: +50.0 points of mIoU frame 0, city_000000_000000",
        "Median gain: +0.0 points of mIoU frame 3, city_000000_000003",
        "Smallest gain: \N{MINUS SIGN}12.5 points of mIoU frame 2, city_000000_000002",
    ]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", strips.pictures)
    assert captions[:6] == [
        "image",
        "truth",
        "teacher <b>100.0%</b>",
        "vanilla (control) <b>50.0%</b>",
        "a03 <b>100.0%</b>",
        "where they differ <b>student alone 50.0%, control 0.0%</b>",
    ]
    assert captions[17].endswith("student alone 0.0%, control 12.5%</b>")
    files = [base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([^\"]+)", strips.pictures)]
    with Image.open(io.BytesIO(files[5])) as picture:
        colors = picture.convert("RGB").getcolors()
    assert sorted(colors) == [(64, (31, 95, 191)), (64, (236, 238, 242))]
    assert "of all 5 frames of val" in strips.rule
    assert "never by hand" in strips.rule


def test_strips_say_when_the_control_is_another_network(summary: Summary, metrics: Path) -> None:
    rows = [row for row in summary.rows if row.run != "a03"]
    assert "light is furthest above that of vanilla" in picture_strips(of_rows(rows, {}), metrics).rule
    assert "another network (deeplabv3plus_mobilenet)" in picture_strips(of_rows(rows, {}), metrics).rule


def test_without_a_distilled_run_there_is_nothing_to_compare(summary: Summary, metrics: Path) -> None:
    rows = [row for row in summary.rows if row.role != "student"]
    assert "no distilled run" in picture_strips(of_rows(rows, {}), metrics).pictures
    assert [matrix.label for matrix in matrices(of_rows(rows, {}), metrics)] == ["vanilla", "teacher"]


def test_a_champion_without_a_teacher_leaves_the_best_distilled_run(summary: Summary) -> None:
    rows = [replace(row, int8_mean_iou=0.9) if row.run == "vanilla" else row for row in summary.rows]
    changed = of_rows(rows, {})
    assert changed.champion.run == "vanilla"
    assert changed.best_student.run == "a03"


def test_confusion_is_shown_in_shares_with_its_counts(summary: Summary, metrics: Path) -> None:
    found = matrices(summary, metrics)
    assert [matrix.label for matrix in found] == ["a03", "vanilla (control)", "teacher"]
    figure = confusion_figure(found)
    student, control, teacher = figure["data"]
    # Of 5 x 128 pixels of road a03 calls 96 a traffic light, vanilla 144.
    assert student["z"] == [[85, 15, 0], [None] * 3, [None] * 3]
    assert student["customdata"][0] == [544, 96, 0]
    assert control["z"][0] == [77.5, 22.5, 0]
    assert teacher["text"] == [["100", "", ""], [""] * 3, [""] * 3]
    assert [trace["visible"] for trace in figure["data"]] == [True, False, False]


def test_largest_mistakes_are_told_in_words(summary: Summary, metrics: Path) -> None:
    table = mistakes_table(matrices(summary, metrics))
    assert re.sub("<.*?>", "|", table).count("road") == 1
    assert re.findall(r"<td[^>]*>(.*?)</td>", table) == ["traffic light", "96", "15.0%", "22.5%", "0.0%"]


def test_tiles_measure_each_figure_by_another(summary: Summary) -> None:
    found = unescape(tiles(summary))
    shown = re.findall(r'<dt>(.*?)</dt><dd class="figure">(.*?)</dd><dd class="against">(.*?)</dd>', found)
    assert shown == [
        ("val mIoU, int8 ONNX", "52.5%", "+3.5 points against vanilla (both int8)"),
        ("p50 per 64x128 frame, 2 threads", "20.0 ms", "end to end; the teacher: 90.0 ms in float32 ONNX"),
        ("int8 ONNX file", "5.5 MB", "12% of the teacher's parameters"),
        (
            "mIoU against the teacher",
            "\N{MINUS SIGN}19.5 points",
            "which has 72.0%, not quantized; the same class on 90% of pixels",
        ),
    ]
    blank = {"onnx_int8_p50_ms": None, "onnx_float32_p50_ms": None}
    assert "ms" not in tiles(of_rows([replace(row, **blank) for row in summary.rows], {}))
