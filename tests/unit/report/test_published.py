"""The published results: those of docs/sources.md, each with the run that repeats it and what differs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.report.published import (
    SOURCE_A,
    SOURCE_B,
    differences,
    published_rows,
    published_tables,
    source_a,
    source_b,
)
from segdistill.results.row import Row
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import sweep_params, write_metrics

ROOT = Path(__file__).parents[3]
SECTIONS = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8").split("\n## ")
NUMBER = re.compile(r"\d[\d,]*\.\d+")


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarise(sweep_params(), write_metrics(tmp_path_factory.mktemp("sweep") / "metrics"))


def lines_of(section: str) -> list[str]:
    return [line for line in section.splitlines() if line.startswith("| ") and len(NUMBER.findall(line)) >= 5]


def test_source_a_is_what_the_docs_give() -> None:
    rows = [row for row in published_rows(SOURCE_A) if row["mean_iou"]]
    columns = ("mean_loss", "overall_acc", "mean_acc", "mean_iou", "s_per_image")
    documented = [NUMBER.findall(line)[-5:] for line in lines_of(SECTIONS[1])]
    assert [[row[name] for name in columns] for row in rows] == documented
    assert len(documented) == 10


def test_source_b_is_what_the_docs_give() -> None:
    columns = ("torch_total_ms", "onnx_total_ms", "overall_acc", "mean_acc", "freqw_acc", "mean_iou")
    for row, line in zip(published_rows(SOURCE_B), lines_of(SECTIONS[2]), strict=True):
        documented = [number.replace(",", "") for number in NUMBER.findall(line)]
        assert [row[name] for name in columns] == documented[:2] + documented[3:]
        assert float(row["torch_total_ms"]) / float(row["onnx_total_ms"]) == pytest.approx(
            float(documented[2]), abs=0.05
        )


def rows_of(params: Params) -> list[Row]:
    """Return rows of the runs of `params` with the settings that these tests compare."""
    rows = [Row(run="teacher", role="teacher", arch=params.teacher.arch)]
    for run in params.runs:
        settings = params.distill_settings(run)
        rows.append(
            Row(
                run=run,
                role="control" if settings.teacher == "none" else "student",
                arch=settings.student,
                alpha=settings.alpha,
                lr=settings.lr,
                schedule=settings.schedule,
                label_loss=settings.label_loss,
                steps=settings.steps,
                finetune_steps=params.finetune_params(run).steps,
            )
        )
    return rows


@pytest.mark.parametrize("profile", ["cityscapes", "cityscapes-resnet50"])
def test_cityscapes_profile_repeats_every_row_of_its_teacher(profile: str) -> None:
    params = load_params(ROOT / "profiles" / f"{profile}.yaml")
    pairs = published_tables(of_rows(rows_of(params), {}, params))["a"]["pairs"]
    assert [pair.run for pair in pairs].count(None) == 1  # the other teacher
    assert not any(pair.differing for pair in pairs)
    assert [pair.run for pair in pairs[2:]] == [
        "vanilla", "a01-lr01", "a03-lr01", "a07-lr01", "a03-lr001", "a01-lr01", "a03-lr01", "a07-lr01", "a03-tv-step",
    ]  # fmt: skip
    assert published_tables(of_rows(rows_of(params), {}, changed(params, data={"source": "synthetic"}))) is None


def test_differences_are_named() -> None:
    params = load_params(ROOT / "profiles" / "cityscapes.yaml")
    row = next(row for row in rows_of(params) if row.run == "a01-lr01")
    first, fifth = (next(p for p in published_rows(SOURCE_A) if p["row"] == number) for number in "15")
    assert differences(first, row, params) == differences(fifth, row, params) == []
    assert differences(first, replace(row, steps=100), params) == ["steps"]
    assert differences(fifth, replace(row, finetune_steps=0, label_loss="focal"), params) == ["steps", "label loss"]
    assert differences(first, row, changed(params, data={"size_px": (512, 1024)})) == ["frame size"]
    assert differences(first, row, changed(params, data={"size_px": (1024, 2048)})) == []
    assert differences(first, row, changed(params, data={"source": "synthetic"})) == ["data"]


def changed(params: Params, **sections: dict) -> Params:
    """Return `params` with other values in some sections."""
    raw = params.model_dump()
    return Params.model_validate(raw | {name: raw[name] | values for name, values in sections.items()})


@pytest.mark.parametrize(
    ("sections", "as_distilled", "as_finetuned"),
    [
        ({"distill": {"method": "channel_kl"}}, ["method"], ["method"]),
        ({"distill": {"temperature": 4.0}}, ["temperature"], ["temperature"]),
        ({"teacher": {"arch": "deeplabv3plus_mobilenet"}}, ["teacher"], ["teacher"]),
        ({"teacher": {"flip": True}}, ["teacher"], ["teacher"]),
        ({"finetune": {"schedule": "poly"}}, [], ["finetune schedule"]),
        ({"finetune": {"lr": 0.1, "alpha": 0.9}}, [], ["finetune lr", "finetune alpha"]),
        ({"finetune": {"lr": 0.01, "alpha": 0.1}}, [], []),
    ],
)
def test_another_loss_or_teacher_is_named(sections: dict, as_distilled: list[str], as_finetuned: list[str]) -> None:
    params = changed(load_params(ROOT / "profiles" / "cityscapes.yaml"), **sections)
    row = next(row for row in rows_of(params) if row.run == "a01-lr01")
    first, fifth = (next(p for p in published_rows(SOURCE_A) if p["row"] == number) for number in "15")
    assert (differences(first, row, params), differences(fifth, row, params)) == (as_distilled, as_finetuned)


def test_metrics_are_of_the_phase_that_was_published(summary: Summary) -> None:
    pairs = {pair.number: pair for pair in source_a(summary)}
    # Row 2 is the run a03 as distilled (0.45), row 6 as finetuned (0.53).
    assert (pairs["2"].published[3], pairs["2"].measured[3]) == ("52.46%", "45.00%")
    assert (pairs["6"].published[3], pairs["6"].measured[3]) == ("57.70%", "53.00%")
    assert pairs["2"].differing[:2] == ["data", "steps"]
    assert (pairs["3"].run, pairs["3"].measured[3]) == (None, "–")


def test_source_b_compares_ratios(summary: Summary) -> None:
    student, teacher = source_b(summary)
    # light: 260 ms in PyTorch, 160 in ONNX, ten frames; the teacher 1010 and 910.
    assert (student.own, student.measured[:3], student.published[2]) == (["light", "10"], ["260", "160", "1.6"], "6.8")
    assert (teacher.measured[:3], teacher.published[2]) == (["1,010", "910", "1.1"], "5.1")
    assert student.differing == teacher.differing == ["data", "timing"]
