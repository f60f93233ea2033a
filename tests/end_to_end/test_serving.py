"""`mlflow models serve` answers an image sent as JSON with the class map that the ONNX file itself gives."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segdistill.export.onnx_file import OnnxPredictor, write_float32
from segdistill.formats.header import Header
from segdistill.nets.registry import build
from segdistill.tracking.mlflow import track
from support.fake_metrics import sweep_params, write_metrics
from support.scripts_as_modules import load_script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ROOT = Path(__file__).resolve().parents[2]
ARCH = "deeplabv3_mobilenet_lite"
# The file that is the champion by fake_metrics.
CHAMPION = Path("models/runs/a03/student.int8.onnx")
ANSWER_S = 60


def ask(port: int, inputs: object) -> dict:
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return json.load(answer)


def test_the_champion_answers_an_image_sent_as_json(tmp_path, monkeypatch):
    screenshots = load_script(ROOT / "tools" / "screenshots.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # it calls uvicorn
    write_metrics(Path("metrics"))
    torch.manual_seed(0)
    write_float32(CHAMPION, build(ARCH, 19), replace(Header.of_net(ARCH, 19, 16), weights_sha256="0"), 18, (32, 64))
    assert track(sweep_params(), Path("metrics"))
    port = screenshots.free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/segdistill-student@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    image_1HW3 = np.random.default_rng(0).integers(0, 256, (1, 40, 72, 3), dtype=np.uint8)
    with screenshots.served(command, f"http://127.0.0.1:{port}/ping"):
        answer = ask(port, image_1HW3.tolist())
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(port, [[[[0, 0, 256]]]])
    assert answer["predictions"].keys() == {"classes"}
    assert np.array_equal(answer["predictions"]["classes"], OnnxPredictor(CHAMPION, 1).classes(image_1HW3))
    with pytest.raises(OSError, match="refused|reset"):  # reset where the system has not yet noticed the end
        ask(port, [])
