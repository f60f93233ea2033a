"""The report as a page: self-contained, escaped, and complete where metrics, curves or images are missing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from plotly.offline import get_plotlyjs

from segdistill.core.files import read_json, write_json, write_text
from segdistill.params.read import load_params
from segdistill.report.charts import MAX_POINTS, curves_chart, line_styles, tradeoff_chart
from segdistill.report.page import write_report
from segdistill.report.sections import tiles
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import HEADER, sweep_params, write_metrics, write_record, write_sweep

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_metrics(tmp_path_factory.mktemp("sweep") / "metrics")


@pytest.fixture
def metrics(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "metrics"))


@pytest.fixture
def summary(metrics: Path) -> Summary:
    return summarise(sweep_params(), metrics)


def page(summary: Summary, metrics: Path) -> str:
    """The written report without plotly.js."""
    out = metrics.parent / "reports" / "index.html"
    write_report(summary, metrics, out)
    text = out.read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1
    return text.replace(get_plotlyjs(), "")


class _Outline(HTMLParser):
    """Collects the opened elements, checks that they are closed in order."""

    VOID = {"meta", "img", "link", "br", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.opened, self.links, self.scripts = [], [], 0
        self.feed(text)
        assert not self.opened

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


def test_page_loads_nothing_from_outside(summary: Summary, metrics: Path) -> None:
    text = page(summary, metrics)
    assert not re.search(r"https?://", text)
    outline = _Outline(text)
    assert outline.scripts == 3
    assert outline.links
    assert all(link.startswith(("data:image/", "#")) for link in outline.links)
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(|fetch\(", text)
    assert "{{" not in text
    assert "{%" not in text


def test_names_are_escaped(summary: Summary, metrics: Path) -> None:
    rows = [
        replace(row, run=EVIL if row.run == "a03" else row.run, class_iou={EVIL: 0.5, "{{figures}}": 0.25})
        for row in summary.rows
    ]
    text = page(of_rows(rows, summary.benchmark), metrics)
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert "a &lt;fast&gt; one" in text
    assert "{{figures}}" in text  # data is no template
    assert _Outline(text).scripts == 3


def test_names_in_charts_are_escaped(summary: Summary, metrics: Path) -> None:
    rows = [replace(row, run=EVIL) if row.run == "a03" else row for row in summary.rows]
    evil = of_rows(rows, summary.benchmark)
    folder = metrics / "runs" / EVIL
    for curve in ("distill", "finetune"):
        write_text(folder / f"{curve}_curve.csv", (metrics / "runs" / "a03" / f"{curve}_curve.csv").read_text())
    charts = json.dumps([tradeoff_chart(evil), curves_chart(evil, metrics)])
    assert "<script>" not in charts
    assert "&lt;script&gt;" in charts


def test_answer_comes_first(summary: Summary, metrics: Path) -> None:
    text = page(summary, metrics)
    assert "<h1>Ship a03 as int8 ONNX</h1>" in text
    assert text.index("3.5 points above the control vanilla") < text.index('<h2 id="runs">')
    assert "dvc repro" in text


def test_missing_values_are_dashes(summary: Summary, metrics: Path) -> None:
    text = page(summary, metrics)
    assert "None" not in text
    light = re.search(r'data-value="light".*?</tr>', text)[0]
    assert light.count("–") == 3  # int8: no mIoU, no size, no latency
    assert re.search(r"IoU, %.*<td class=\"none\">–</td>", text, re.DOTALL)  # the class "train" does not occur


def test_nothing_measured_still_gives_a_page(summary: Summary, tmp_path: Path) -> None:
    blank = {"mean_iou": None, "float32_mean_iou": None, "int8_mean_iou": None, "class_iou": {}, "float32_mb": None}
    rows = [replace(row, **blank, onnx_float32_p50_ms=None) for row in summary.rows]
    text = page(of_rows(rows, {}), tmp_path / "empty" / "metrics")
    assert "Nothing to ship yet" in text
    assert "no two runs with a score to compare" in text
    assert "No confusion matrix was kept" in text
    _Outline(text)


def test_finetuning_curves_continue_those_of_distilling(summary: Summary, metrics: Path) -> None:
    figure = curves_chart(summary, metrics)
    loss = [trace for trace in figure["data"] if trace["yaxis"] == "y2"]
    assert [trace["name"] for trace in loss] == ["vanilla", "a03", "light"]  # the teacher's curve is only a header
    assert (loss[0]["x"], loss[0]["y"]) == ([5, 10, 16], [2.0, 1.0, 0.5])
    assert loss[2]["x"] == [5, 10]
    iou = [trace for trace in figure["data"] if trace["yaxis"] == "y"]
    assert (iou[0]["x"], iou[0]["y"]) == ([10, 16], [25, 50])
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [10]
    assert [trace["showlegend"] for trace in figure["data"][:3]] == [True, False, False]


def test_empty_and_diverged_curves(summary: Summary, metrics: Path) -> None:
    for path in metrics.rglob("*_curve.csv"):
        write_text(path, HEADER)
    assert curves_chart(summary, metrics)["data"] == []
    page(summary, metrics)
    write_text(metrics / "runs" / "a03" / "distill_curve.csv", HEADER + "1,0.1,nan,1.0,,\n2,0.1,inf,2.0,,\n")
    (trace,) = curves_chart(summary, metrics)["data"]
    assert (trace["yaxis"], trace["y"], trace["showlegend"]) == ("y3", [1.0, 2.0], True)
    page(summary, metrics)


def test_long_curves_are_thinned(summary: Summary, metrics: Path) -> None:
    lines = "".join(f"{step},0.1,{1 / step},1.0,,\n" for step in range(1, 5001))
    write_text(metrics / "runs" / "vanilla" / "distill_curve.csv", HEADER + lines)
    first = next(trace for trace in curves_chart(summary, metrics)["data"] if trace["yaxis"] == "y2")
    assert len(first["x"]) == MAX_POINTS
    assert (first["x"][0], first["x"][-1]) == (1, 10 + 6)


def test_teacher_of_several_parts_is_named_as_it_was_timed(summary: Summary, metrics: Path) -> None:
    assert "its latency in float32 ONNX." in page(summary, metrics)
    rows = [replace(summary.teacher, onnx_float32_p50_ms=None, torch_p50_ms=103.0), *summary.runs]
    composite = of_rows(rows, summary.benchmark)
    teacher = tradeoff_chart(composite)["data"][1]
    assert (teacher["x"], teacher["customdata"]) == ([103], ["<b>teacher</b> PyTorch: 72.00% mIoU, 103.00 ms"])
    text = page(composite, metrics)
    assert "its latency in PyTorch, the one form in which it was timed whole." in text
    assert "</i>teacher, PyTorch</li>" in text
    assert "the teacher: 103.0 ms in PyTorch</dd>" in text


def test_tiles_name_the_form_of_each_number(summary: Summary) -> None:
    rows = [replace(summary.teacher, onnx_int8_p50_ms=45.0), *summary.runs]
    accuracy, latency, *_ = tiles(of_rows(rows, summary.benchmark))
    assert latency.against == "end to end; the teacher: 45.0 ms in int8 ONNX, 90.0 ms in float32 ONNX"
    assert latency.name == "p50 per 64x128 frame, 2 threads"
    assert accuracy.against.startswith("+3.5 points against vanilla (both int8)")


def test_params_on_the_page_repeat_the_sweep(summary: Summary, metrics: Path) -> None:
    params = sweep_params(tracking={"uri": "http://mlflow.example.org"})
    text = page(replace(summary, params=params), metrics)
    written = html.unescape(re.search(r"<pre>(seed: 0.*?)</pre>", text, re.DOTALL)[1])
    tracking = yaml.safe_dump({"tracking": params.tracking.model_dump()})
    write_text(metrics.parent / "params.yaml", f"{written}\n{tracking}")
    assert load_params(metrics.parent / "params.yaml") == params
    assert "mlflow.example.org" not in text
    assert re.search(r"<dt>git revision</dt><dd>\w+", text)
    assert "trained here: 8 steps of 4 crops of 64x64, from random weights" in text


def test_sixteen_settings_have_styles_of_their_own(summary: Summary) -> None:
    many = of_rows([replace(summary.run("a03"), run=f"run-{n}", alpha=n / 16) for n in range(16)], {})
    assert len({(style["color"], style["dash"]) for style in line_styles(many).values()}) == 16


def test_headings_go_down_one_level_at_a_time(summary: Summary, metrics: Path) -> None:
    text = page(summary, metrics)
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    for link in re.findall(r'href="#(\w+)"', text):
        assert text.count(f'id="{link}"') == 1
    ids = re.findall(r' id="([\w-]+)"', text)
    assert len(ids) == len(set(ids))


def test_a_sweep_of_16_runs_stays_under_8_mb(summary: Summary, metrics: Path) -> None:
    long = HEADER + "".join(f"{step},0.01,{1 / step},{2 / step},{3 / step},{step / 4e4}\n" for step in range(1, 3001))
    names = [f"run-{number:02d}" for number in range(14)]
    for run in [*names, "vanilla", "a03"]:
        for curve in ("distill", "finetune"):
            write_text(metrics / "runs" / run / f"{curve}_curve.csv", long)
    # Noise does not compress: no street weighs as much.
    for seed, model in enumerate(("teacher", "vanilla", "a03")):
        folder = metrics if model == "teacher" else metrics / "runs" / model
        write_record(folder / "val", model, size_px=(512, 1024), seed=seed)
    rows = [*summary.rows, *(replace(summary.run("a03"), run=run) for run in names)]
    assert len(rows) - 1 >= 16
    write_report(of_rows(rows, summary.benchmark), metrics, metrics / "index.html")
    assert (metrics / "index.html").stat().st_size < 8e6


def test_no_heavy_import() -> None:
    names = "{'torch', 'mlflow', 'onnx'}"
    code = f"import sys, segdistill.report.page, segdistill.report.terminal; print({names} & {{*sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout == "set()\n"


def test_published_results_are_shown_for_cityscapes_only(summary: Summary, metrics: Path) -> None:
    assert 'id="published"' not in page(summary, metrics)
    text = page(replace(summary, params=sweep_params(data={"source": "cityscapes"})), metrics)
    assert 'href="#published"' in text
    assert "Source A: DeepLabV3+ on Cityscapes" in text
    _Outline(text)


def test_settings_have_a_line_each_with_their_interval(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    params = write_sweep(metrics, [0.5, 0.52, 0.51], {"up": [0.05, 0.06, 0.055], "same": [0.01, -0.02, 0.0]})
    text = page(summarise(params, metrics), metrics)
    table = text[text.index('id="settings"') : text.index('id="latency"')]
    assert re.search(r'data-value="up".*?\+5\.5</td>.*?\+\d\.\d to \+\d\.\d</td>.*?>helped</td>', table, re.DOTALL)
    assert "cannot tell: the interval holds 0" in table
    long = params.runs["up-s0"].model_copy(update={"steps": 11})
    other = params.model_copy(
        update={"runs": params.runs | {f"up-s{seed}": long.model_copy(update={"seed": seed}) for seed in range(3)}}
    )
    shown = page(summarise(other, metrics, check_stale=False), metrics)
    assert 'title="steps 11 against 10">cannot tell: the control has another recipe</td>' in shown
    assert "The intervals cover the seeds and the 3 cities or recordings of val." in table
    styles = line_styles(summarise(params, metrics))
    assert styles["up-s0"] == styles["up-s2"] != styles["same-s0"]


def test_unseen_drives_decide_whether_distilling_helped(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    params = write_sweep(metrics, [0.5, 0.52, 0.51], {"up": [0.05, 0.06, 0.055]})
    for seed in range(3):
        for run, unseen in ((f"vanilla-s{seed}", 0.4), (f"up-s{seed}", 0.38 + seed / 1000)):
            file = metrics / "runs" / run / "finetune.json"
            write_json(file, read_json(file) | {"unseen": {"mean_iou": unseen}})
    write_json(metrics / "teacher.json", read_json(metrics / "teacher.json") | {"unseen_groups": 2})
    text = page(summarise(params, metrics), metrics)
    table = text[text.index('id="settings"') : text.index('id="latency"')]
    assert re.search(r'data-value="up".*?\+5\.5</td>.*?\N{MINUS SIGN}1\.9</td>.*?>hurt</td>', table, re.DOTALL)
    assert "It rests on the unseen drives (2), which are in no other split" in table
    assert ">helped<" not in table


def test_stale_rows_are_marked(summary: Summary, metrics: Path) -> None:
    rows = [replace(row, computed_with={"alpha": 0.3}) if row.run == "a03" else row for row in summary.rows]
    text = page(of_rows(rows, summary.benchmark), metrics)
    assert text.count('<span class="badge stale">stale</span>') == 2  # in both tables of runs
    assert "params.yaml or the data was changed since the metrics of a03 were computed" in text
