"""The report's section on the teacher: classes below the control, accuracy on views, and doubted labels with images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdistill.core.files import write_json, write_text
from segdistill.formats.thumbnails import thumbnail
from segdistill.report.page import write_report
from segdistill.report.teacher import teacher_part
from segdistill.results.summary import Summary, summarise
from support.fake_metrics import TABLE, sweep_params, write_metrics

VIEWS = {
    "kind": "views",
    "crops": 1200,
    "overall_acc": 0.991,
    "mean_iou": 0.85,
    "class_iou": {"road": 0.95, "traffic_light": 0.05, "train": None},
    "val": {"overall_acc": 0.8, "mean_iou": 0.72},
    "memorised": True,
}


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    metrics = write_metrics(tmp_path / "metrics")
    write_json(metrics / "teacher_logits" / "views.json", VIEWS)
    header = "frame,name,group,cells,accuracy,sure_of_another,confidence\n"
    rows = "12,<b>aachen_12,aachen,900,0.7,0.251000,0.3\n3,aachen_3,aachen,900,0.9,0.010000,0.1\n"
    folder = metrics / "teacher_logits" / "views"
    write_text(folder / "frames.csv", header + rows)
    (folder / "00012_image.jpg").write_bytes(thumbnail(np.full((8, 16, 3), 90, np.uint8), TABLE))
    for kind in ("label", "teacher", "sure"):
        (folder / f"00012_{kind}.png").write_bytes(thumbnail(np.zeros((8, 16), np.uint8), TABLE))
    return metrics


@pytest.fixture
def summary(metrics: Path) -> Summary:
    return summarise(sweep_params(), metrics)


def test_accuracy_on_views_is_given_next_to_that_on_val(summary: Summary, metrics: Path) -> None:
    first, second, *_ = teacher_part(summary, metrics).notes
    assert first.startswith("On the 1,200 views that students learn from the teacher is right on 99.1% of the labelled")
    assert "pixels (mIoU 85.0%), on val on 80.0% (mIoU 72.0%)" in first
    assert second.startswith("The teacher has memorised its train frames")


def test_classes_below_the_control_are_marked(summary: Summary, metrics: Path) -> None:
    teacher = replace(summary.rows[0], class_iou=summary.rows[0].class_iou | {"traffic_light": 0.04})
    table = teacher_part(replace(summary, rows=(teacher, *summary.runs)), metrics).classes
    assert table is not None
    lines = {line.name: [(cell.text, "loss" in cell.kind) for cell in line.cells] for line in table.lines}
    assert lines["traffic light"] == [("4.0", False), ("10.0", False), ("−6.0", True), ("5.0", True)]
    assert lines["road"][2] == ("+44.0", False)
    assert [text for text, _ in lines["train"]] == ["–"] * 4


def test_frames_with_images_are_shown_first_one_first(summary: Summary, metrics: Path) -> None:
    (strip,) = teacher_part(summary, metrics).doubted
    assert strip.head == "Sure of another class on 25.1% of the labelled pixels"
    assert strip.frame == "train frame 12, <b>aachen_12"
    assert [image.caption for image in strip.images] == ["image", "label", "teacher", "sure of another class"]


def test_page_has_the_section_and_escapes_names(summary: Summary, metrics: Path) -> None:
    write_report(summary, metrics, metrics / "index.html")
    text = (metrics / "index.html").read_text(encoding="utf-8")
    section = text[text.index('<h2 id="teacher">') : text.index('<h2 id="conditions">')]
    assert section.count("<img") == 4
    assert "&lt;b&gt;aachen_12" in section
    assert re.search(
        r"On the views, too, the teacher is below what the control has on val: traffic light\.",
        text,
    )


def test_sweep_without_measurements_has_no_doubts(tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics")
    part = teacher_part(summarise(sweep_params(), metrics), metrics)
    assert (part.notes, part.doubted) == ([], [])
    assert part.classes is not None
