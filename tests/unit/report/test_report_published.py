"""The published figures: those of docs/sources.md, each beside the run that repeats it, and told what differs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.report.published import SOURCE_A, SOURCE_B, differences, published_rows, source_a_table, source_b_table
from segdistill.results.row import Row
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import sweep_params, write_metrics

ROOT = Path(__file__).parents[3]
SECTIONS = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8").split("\n## ")
NUMBER = re.compile(r"\d[\d,]*\.\d+")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_metrics(tmp_path_factory.mktemp("sweep") / "metrics")


@pytest.fixture(scope="module")
def summary(metrics: Path) -> Summary:
    return summarise(sweep_params(), metrics)


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
    """Rows of the runs of `params`, as far as they are asked for here."""
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
def test_the_full_grid_repeats_every_row_of_its_teacher(profile: str, tmp_path: Path) -> None:
    params = load_params(ROOT / "profiles" / f"{profile}.yaml")
    table = source_a_table(of_rows(rows_of(params), {}, params), tmp_path)
    assert table.count("same as far as given") == 10  # all but the other teacher
    assert table.count("no such run here") == 1
    assert "differs" not in table
    own = re.findall(r'class="here"><td class="\w+">([\w -]+)', table)
    assert own[2:] == [
        "vanilla", "a01-lr01", "a03-lr01", "a07-lr01", "a03-lr001", "a01-lr01", "a03-lr01", "a07-lr01", "a03-tv-step",
    ]  # fmt: skip


def test_what_differs_is_named() -> None:
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
    """`params` with other values in some sections."""
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
def test_another_lesson_is_not_the_same(sections: dict, as_distilled: list[str], as_finetuned: list[str]) -> None:
    params = changed(load_params(ROOT / "profiles" / "cityscapes.yaml"), **sections)
    row = next(row for row in rows_of(params) if row.run == "a01-lr01")
    first, fifth = (next(p for p in published_rows(SOURCE_A) if p["row"] == number) for number in "15")
    assert (differences(first, row, params), differences(fifth, row, params)) == (as_distilled, as_finetuned)


def test_figures_are_of_the_phase_that_was_published(summary: Summary, metrics: Path) -> None:
    table = source_a_table(summary, metrics)
    # The run a03 stands below row 2 as distilled (0.45) and below row 6 as finetuned (0.53).
    pairs = {match[1]: match[2] for match in re.finditer(r'rowspan="2">(\d)</th>(.*?)</tbody>', table)}
    assert "52.46%" in pairs["2"]
    assert "45.00%" in pairs["2"]
    assert "57.70%" in pairs["6"]
    assert "53.00%" in pairs["6"]
    assert "differs: data, steps" in pairs["2"]
    assert "no such run here" in pairs["3"]


def test_source_b_compares_ratios(summary: Summary) -> None:
    table = source_b_table(summary)
    # light: 260 ms in PyTorch, 160 in ONNX, ten frames; the teacher 1010 and 910.
    assert re.search(r'"here"><td class="text">light</td><td class="number">10</td>.*?260.*?160.*?1\.6<', table)
    assert re.search(r">6\.8<.*>5\.1<", table)
    assert table.count("differs: data, timing") == 2
