"""Every Python block of the docs runs as it is printed, and the programs of docs/ship do what their page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.export.onnx_file import OnnxPredictor
from support.model_files import smooth_frame

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
SHIP = ROOT / "docs/ship"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
SIZE_PX = (48, 80)


def blocks() -> list:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [
        pytest.param(code, id=f"{page.name}-{number}")
        for page in pages
        for number, code in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if page.name != "serving.md"  # needs a registry; tests/end_to_end/test_serving.py has one
        and "EomtFor" not in code
        and "SegformerFor" not in code  # need transformers, which is not installed here
    ]


@pytest.fixture
def finished(small_models, tmp_path, monkeypatch) -> Path:
    """Work in a folder with the files of the run `light`, and an image."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "models/runs/light"
    folder.mkdir(parents=True)
    for file in (small_models.torch, small_models.float32, small_models.int8):
        shutil.copy(file, folder / file.name)
    Image.fromarray(smooth_frame(SIZE_PX)).save(tmp_path / "street.jpg")
    return tmp_path


@pytest.mark.parametrize("code", blocks())
def test_python_block_of_the_docs_runs(code, finished):
    names: dict = {}
    exec(compile(code, "block", "exec"), names)  # noqa: S102 - what the docs tell users to run
    assert names["classes"].shape[-2:] == SIZE_PX
    if "label_ids" in names:
        assert names["label_ids"].max() <= 33  # label ids of Cityscapes
        assert not np.array_equal(names["label_ids"], names["classes"])


def expected_classes(finished: Path, file: str = "street.jpg") -> np.ndarray:
    frame = np.asarray(Image.open(finished / file).convert("RGB"))
    return OnnxPredictor(finished / "models/runs/light/student.int8.onnx", 1).classes(frame[None])[0]


def test_python_program_writes_classes_and_an_overlay_with_a_legend(finished):
    """Run what the Dockerfile runs, in a folder that has only what it copies."""
    dockerfile = (SHIP / "Dockerfile").read_text()
    *copied, _ = re.search(r"^COPY (.+)$", dockerfile, re.MULTILINE)[1].split()
    program, *arguments = json.loads(re.search(r"^ENTRYPOINT (.+)$", dockerfile, re.MULTILINE)[1])
    app = finished / "app"
    app.mkdir()
    shutil.copy(finished / "models/runs/light/student.int8.onnx", app / "student.onnx")
    shutil.copy(SHIP / "segment.py", app)
    assert sorted(copied) == sorted(path.name for path in app.iterdir())
    assert program == "python"
    # Without this project on the path: the program needs none of it.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments, str(finished / "street.jpg")],
        cwd=app,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    classes = expected_classes(finished)
    assert np.array_equal(np.asarray(Image.open(finished / "street_classes.png")), classes)
    overlay = np.asarray(Image.open(finished / "street_overlay.png"))
    header = OnnxPredictor(finished / "models/runs/light/student.int8.onnx", 1).header
    most = np.bincount(classes.ravel()).argmax()
    assert header.table.names[most] in done.stdout
    # The first row of the legend, right of the image, has the colour of the most frequent class.
    assert overlay[8, SIZE_PX[1] + 8].tolist() == list(header.table.colors[most])
    frame = np.asarray(Image.open(finished / "street.jpg")).astype(int)
    mixed = (frame + header.table.palette[classes]) // 2
    assert np.array_equal(overlay[: SIZE_PX[0], : SIZE_PX[1]], mixed)
    assert "segdistill" not in [
        line.split()[1] for line in (app / "segment.py").read_text().splitlines() if "import " in line
    ]


def test_cpp_program_writes_the_same_classes(finished):
    root = os.environ.get("ONNXRUNTIME_ROOT")
    if root is None or shutil.which("g++") is None:
        pytest.skip("ONNXRUNTIME_ROOT names no unpacked release of onnxruntime (include, lib), or there is no g++")
    Image.open("street.jpg").convert("RGB").save("street.ppm")
    command = re.search(r"^(g\+\+ .*?)\n\./segment", (ROOT / "docs/ship.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    subprocess.run(command.replace("docs/ship/", f"{SHIP}/"), shell=True, check=True)  # noqa: S602 - as the page has it
    arguments = ["models/runs/light/student.int8.onnx", "street.ppm", "classes.pgm"]
    done = subprocess.run(["./segment", *arguments], capture_output=True, text=True, check=True)
    assert np.array_equal(np.asarray(Image.open("classes.pgm")), expected_classes(finished, "street.ppm"))
    assert len(json.loads(done.stdout)["class_names"]) == 19
