"""Accuracy against latency: every file is seen at its values, and the axis can be read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segdistill.report.charts import line_styles, tradeoff_chart
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import sweep_params, write_metrics


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarise(sweep_params(), write_metrics(tmp_path_factory.mktemp("sweep") / "metrics"))


def test_front_is_drawn_through_its_files(summary: Summary) -> None:
    figure = tradeoff_chart(summary)
    front, teacher, float32, int8 = figure["data"]
    assert (front["x"], front["y"]) == ([15, 20, 30, 90], [47, 52.5, 53, 72])
    assert (teacher["x"], float32["x"], int8["x"]) == ([90], [30, 30, 15], [20, 20])
    assert (int8["text"], float32["text"]) == (["", "<b>a03</b>"], ["", "a03", "light"])  # those of the front
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert "20" in figure["layout"]["xaxis"]["ticktext"]


def test_files_that_overlap_are_rings_in_the_colours_of_their_settings(summary: Summary) -> None:
    a03 = summary.run("a03")
    near = [replace(a03, run=f"near-{n}", alpha=n / 10, int8_mean_iou=a03.int8_mean_iou - n / 1000) for n in range(3)]
    rows = [summary.teacher, *near, replace(a03, run="far", alpha=0.9, int8_mean_iou=0.4)]
    points = tradeoff_chart(of_rows(rows, {}))["data"][-1]
    assert points["y"] == [52.3, 52.4, 52.5, 40]
    assert points["x"] == [20] * 4
    assert points["marker"]["size"][0] > points["marker"]["size"][1] > points["marker"]["size"][2]
    assert points["marker"]["size"][2:] == [12, 12]
    assert len(set(points["marker"]["color"])) == 4
    assert all(all(f"near-{n}" in hover for n in range(3)) for hover in points["customdata"][:3])
    styles = line_styles(of_rows(rows, {}))
    assert set(points["marker"]["color"]) == {style["color"] for style in styles.values()}
    many = of_rows([replace(a03, run=f"run-{n}", alpha=n / 16) for n in range(16)], {})
    assert tradeoff_chart(many)["data"][-1]["marker"]["symbol"].count("diamond-open") == 8


@pytest.mark.parametrize(("least", "most"), [(5.28, 11.15), (5.28, 5.31), (10.1, 19.9), (201, 499), (3.8, 90)])
def test_axis_of_latency_has_readable_ticks_between_the_files(summary: Summary, least: float, most: float) -> None:
    timed = replace(summary.run("a03"), onnx_float32_p50_ms=least, onnx_int8_p50_ms=None)
    rows = [timed, replace(timed, run="other", onnx_float32_p50_ms=most)]
    axis = tradeoff_chart(of_rows(rows, {}))["layout"]["xaxis"]
    between = [value for value in axis["tickvals"] if least <= value <= most]
    assert 2 <= len(between) <= 6
    assert axis["ticktext"] == [f"{value:g}" for value in axis["tickvals"]]
