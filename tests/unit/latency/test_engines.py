"""Engines of the benchmark: OpenVINO gives the classes that onnxruntime gives; a missing package is one message."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import onnx
import pytest

from segdistill.core.errors import UserError
from segdistill.export.onnx_file import ForwardSession, OnnxPredictor
from segdistill.formats.header import KEY
from segdistill.latency.openvino_engine import openvino_engines
from segdistill.latency.run import _engines, _network, benchmark, time_engines
from segdistill.nets.device import resolve_device
from support.model_files import TRACED_PX, ModelFiles, smooth_frame
from support.stage_calls import call_stage
from support.tiny_city import save_params, tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return ModelFiles(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def engines(files):
    pytest.importorskip("openvino")
    frames = np.stack([smooth_frame(TRACED_PX, seed) for seed in (30, 31)])
    return openvino_engines({"float32": files.float32, "int8": files.int8}, frames, 1)


@pytest.mark.parametrize(("name", "share"), [("float32", 0.995), ("int8", 0.95)])
def test_openvino_names_the_classes_that_onnxruntime_names(files, engines, name, share):
    frame, file = smooth_frame(TRACED_PX, 32)[None], files.float32 if name == "float32" else files.int8
    found, expected = engines[name].end_to_end(frame), OnnxPredictor(file, 1).classes(frame)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found == expected).mean() >= share
    assert share <= engines[name].facts["agreement_with_onnxruntime"] <= 1
    assert file.name in engines[name].how


def test_openvino_runs_the_network_alone_from_pixels_that_are_in_place(files, engines):
    frame = smooth_frame(TRACED_PX, 30)[None]  # the frame whose pixels the engine holds
    expected = ForwardSession(files.float32, 1).run(frame)
    assert np.abs(engines["float32"].forward(frame) - expected).max() < 1e-2 * np.abs(expected).max()


def test_missing_openvino_is_one_message_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r'benchmark\.engines: found openvino, which is not installed; .*pip install "segdistill\[openvino\]"'
    with pytest.raises(UserError, match=message):
        benchmark(tinier_params(benchmark={"engines": ("torch", "openvino")}))


@pytest.mark.parametrize("stage", ["prepare", "teacher_check"])
def test_missing_openvino_stops_the_first_stages_too(stage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    save_params(tinier_params(benchmark={"engines": ("openvino",)}))
    done = call_stage(
        tmp_path, stage, first=lambda: monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    )
    assert done.exit_code == 1
    assert "benchmark.engines: found openvino, which is not installed" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (("torch", "onnxruntime"), {"torch", "torch_best", "onnx_float32", "onnx_int8"}),
        (("onnxruntime",), {"onnx_float32", "onnx_int8"}),
        (("openvino",), {"openvino_float32", "openvino_int8"}),
    ],
)
def test_params_name_the_engines_that_are_timed(files, named, expected):
    if "openvino" in named:
        pytest.importorskip("openvino")
    params = tinier_params(benchmark={"frames": 1, "warmup_frames": 1, "engines": named})
    frames, compute = smooth_frame(TRACED_PX)[None], resolve_device("cpu", "float32", 1)
    engines = _engines(files.torch, {"float32": files.float32, "int8": files.int8}, compute, params, frames)
    assert set(engines) - {"openvino_bfloat16"} == expected  # the last one only where the processor has it
    rows = time_engines({("net", backend): engine for backend, engine in engines.items()}, frames, params)
    assert all(row["end_to_end_p50_ms"] > 0 for row in rows["net"].values())


def test_int8_files_with_layers_in_float_are_timed_as_networks_of_their_own(files, tmp_path):
    names = {}
    for run, layers in {"plain": [], "one": ["/a"], "other": ["/b"], "same": ["/a"]}.items():
        int8 = shutil.copytree(files.int8.parent, tmp_path / "runs" / run) / files.int8.name
        model = onnx.load(int8)
        header = OnnxPredictor(int8, 1).header.with_history(float_layers=layers or None)
        onnx.helper.set_model_props(model, {KEY: header.text()})
        onnx.save(model, int8)
        names[run] = _network(tmp_path, run)
    assert names["plain"] == "deeplabv3_mobilenet_lite_os16"
    assert names["one"].startswith("deeplabv3_mobilenet_lite_os16_float1_")
    assert names["one"] == names["same"] != names["other"]
