"""Engines of the benchmark: OpenVINO gives the classes that onnxruntime gives; a missing package is one message."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.export.onnx_file import ForwardSession, OnnxPredictor
from segdistill.latency.openvino_engine import check_openvino, openvino_engines
from segdistill.latency.run import benchmark
from support.model_files import TRACED_PX, ModelFiles, smooth_frame
from support.tiny_city import tinier_params

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
        check_openvino("benchmark.engines")
    with pytest.raises(UserError, match=message):
        benchmark(tinier_params(benchmark={"engines": ("torch", "openvino")}))
