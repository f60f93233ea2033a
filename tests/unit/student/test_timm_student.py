"""Teacher and student around backbones of timm, from training to the report's rows."""

from __future__ import annotations

import pytest

from segdistill.core.files import read_json
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.export.run import export_run
from segdistill.formats.header import read_header
from segdistill.latency.run import benchmark
from segdistill.report.page import write_report
from segdistill.results.summary import summarise, write_summary
from segdistill.student.run import distill, finetune
from segdistill.tracking.rows import rows_on_disk
from support.tiny_city import build_city, tinier_params

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TEACHER, STUDENT = "deeplabv3plus_timm:mobilenetv3_small_050", "lraspp_timm:mobilenetv3_small_050"


def test_every_stage_names_the_network_with_its_backbone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of_runs = {"student": "lraspp_timm", "lr": 0.01}
    params = tinier_params(
        teacher={"arch": "deeplabv3plus_timm", "backbone": "mobilenetv3_small_050"},
        distill={"backbone": "mobilenetv3_small_050"},
        teacher_logits={"kinds": ("online",)},
        benchmark={"frames": 1, "warmup_frames": 1, "threads": 1},
        runs={
            "vanilla": of_runs | {"alpha": 0.0, "teacher": "none"},
            "taught": of_runs | {"alpha": 0.5, "teacher": "online"},
        },
    )
    build_city(params)
    for run in params.runs:
        distill(params, run)
        finetune(params, run)
        export_run(params, run)
    benchmark(params)

    folder = tmp_path / "models/runs/taught"
    assert read_header(folder / "finetuned.safetensors").arch == STUDENT
    for name in ("student.onnx", "student.int8.onnx"):
        assert OnnxPredictor(folder / name, 1).header.arch == STUDENT
    exported = read_json("metrics/runs/taught/export.json")
    assert exported["float32"]["max_logit_difference_relative"] < 1e-4
    assert read_json("metrics/teacher.json")["arch"] == TEACHER
    assert read_json("metrics/benchmark.json")["models"] == {
        "teacher": f"{TEACHER}_os16",
        "vanilla": f"{STUDENT}_os16",
        "taught": f"{STUDENT}_os16",
    }
    metrics = tmp_path / "metrics"
    summary = summarise(params, metrics)
    assert [(row.run, row.arch, row.is_stale) for row in summary.runs] == [
        ("vanilla", STUDENT, False),
        ("taught", STUDENT, False),
    ]
    assert summary.teacher.arch == TEACHER
    write_summary(summary, metrics)
    write_report(summary, metrics, tmp_path / "report.html")
    assert STUDENT in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert {row.params["student"] for row in rows_on_disk(params, metrics) if "student" in row.params} == {STUDENT}
