"""A folder of images with three classes and a teacher of two files, through all stages to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdistill.core.files import read_json
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.export.run import export_run
from segdistill.formats.classes import ClassTable
from segdistill.formats.header import Header, read_header
from segdistill.latency.run import benchmark
from segdistill.nets.registry import build
from segdistill.nets.weights import save_net
from segdistill.params.model import Params
from segdistill.report.page import write_report
from segdistill.results.summary import summarise, write_summary
from segdistill.student.run import distill, finetune
from segdistill.tracking.rows import rows_on_disk
from support.folder_on_disk import describe, pixels, write_image
from support.onnx_models import weights, write_model
from support.tiny_city import ARCH, build_city, tinier_params

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
TABLE = {
    "class_names": ["grass", "barn owl", "straße"],
    "label_ids": [1, 2, 40],
    "colors": [[0, 160, 0], [200, 180, 90], [90, 90, 90]],
}
RUNS = {
    "vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
    "taught": {"alpha": 0.5, "lr": 0.01, "teacher": "views"},
}


def own_params() -> Params:
    return tinier_params(
        data={"source": "folder", "root": "my-data", "size_px": None, "holdout_fraction": 0.3},
        teacher={"checkpoint": ("own.safetensors", "foreign.onnx"), "flip": True, "arch": "deeplabv3_resnet101"},
        benchmark={"frames": 2, "warmup_frames": 1, "threads": 1},
        runs=RUNS,
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A project that ran through all stages, and its params."""
    folder = tmp_path_factory.mktemp("own")
    describe(folder / "my-data", images="shots/*.jpg", labels="masks/*.png", val_fraction=0.3, group="^(.)")
    for seed, name in enumerate(("a1", "a2", "b1", "b2", "c1", "c2")):
        image, label_ids = pixels(seed, (32, 64))
        write_image(folder / "my-data" / "shots" / f"{name}.jpg", image, quality=95)
        write_image(folder / "my-data" / "masks" / f"{name}.png", label_ids)
    torch.manual_seed(0)
    save_net(folder / "own.safetensors", build(ARCH, 3, 16), Header.of_net(ARCH, 3, 16))
    write_model(folder / "foreign.onnx", weights(3), (1, 3, 32, 32))
    params = own_params()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_city(params)
        for run in RUNS:
            distill(params, run)
            finetune(params, run)
            export_run(params, run)
        benchmark(params)
        summary = summarise(params, Path("metrics"))
        write_summary(summary, Path("metrics"))
        write_report(summary, Path("metrics"), Path("reports/index.html"))
    return folder, params, summary


def test_every_file_holds_the_class_table(done):
    folder = done[0] / "models" / "runs" / "taught"
    for header in (
        read_header(folder / "distilled.safetensors"),
        read_header(folder / "finetuned.safetensors"),
        OnnxPredictor(folder / "student.onnx", 1).header,
        OnnxPredictor(folder / "student.int8.onnx", 1).header,
    ):
        assert header.classes == 3
        assert header.table == ClassTable.of_facts(TABLE)


def test_student_predicts_the_three_classes(done):
    images = np.array(np.load(done[0] / "data/prepared/val/images-00000.npy"))
    classes = OnnxPredictor(done[0] / "models/runs/taught/student.onnx", 1).classes(images)
    assert classes.shape == images.shape[:3]
    assert classes.max() < 3
    exported = read_json(done[0] / "metrics/runs/taught/export.json")
    assert set(exported["int8"]["class_iou"]) == {"grass", "barn_owl", "straße"}
    assert exported["float32"]["class_agreement_with_torch"] > 0.999


def test_images_and_report_use_the_class_colors(done):
    folder, _, summary = done
    with Image.open(next((folder / "metrics/runs/taught/images").glob("*_student.png"))) as image:
        assert np.array(image.getpalette()).reshape(-1, 3)[:3].tolist() == TABLE["colors"]
    assert read_json(folder / "metrics/images/classes.json") == TABLE
    page = (folder / "reports/index.html").read_text(encoding="utf-8")
    assert '<i class="swatch" style="background:rgb(200,180,90)"></i>barn owl' in page
    assert "straße" in page
    assert "pedestrian" not in page
    # The images are noise: no student is better than the most frequent class everywhere.
    assert summary.champion is None
    assert "Nothing to ship yet" in page


def test_teacher_is_the_whole_ensemble_everywhere(done):
    folder, params, summary = done
    described = "own.safetensors + foreign.onnx, flipped"
    teacher = read_json(folder / "metrics/teacher.json")
    assert (teacher["arch"], teacher["parameters"]) == (described, None)
    manifest = read_json(folder / "data/teacher_logits/views/manifest.json")
    assert manifest["teacher_sha256"] == teacher["weights_sha256"]
    student = read_header(folder / "models/runs/taught/finetuned.safetensors")
    assert student.teacher_sha256 == teacher["weights_sha256"]
    timed = read_json(folder / "metrics/benchmark.json")
    assert list(timed["networks"]["ensemble"]) == ["torch"]
    assert timed["networks"]["ensemble"]["torch"]["how"] == described
    assert (summary.teacher.arch, summary.teacher.parameters) == (described, None)
    assert summary.teacher.timed() == ("PyTorch and ONNX", timed["networks"]["ensemble"]["torch"]["end_to_end_p50_ms"])
    rows = {row.run: row for row in rows_on_disk(params, folder / "metrics")}
    assert rows["teacher"].params["checkpoint"] == "own.safetensors, foreign.onnx"
    assert rows["taught"].params["teacher_arch"] == described
    assert rows["taught"].data[0] == "my-data"
    assert json.loads((folder / "metrics/summary.json").read_text())["teacher"]["parameters"] is None
