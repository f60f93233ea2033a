"""The arithmetic of docs/scaling.md against written files."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scaling
from segdistill.data.teacher_cache import FEATURES, FEATURES_SCALE, stored_grid
from segdistill.params.archs import FEATURE_STRIDE
from segdistill.teacher_logits.writer import LogitsWriter


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_cache_bytes_are_the_bytes_on_disk(tmp_path, monkeypatch, dtype, stride):
    monkeypatch.setattr(scaling, "CROP_PX", (32, 64))
    shape = (3, 2, 32 // stride, 64 // stride, scaling.CLASSES)
    with LogitsWriter(tmp_path, dtype, shape) as writer:
        for _ in range(3):
            writer.append(np.zeros(shape[1:], np.float32))
    on_disk = sum(np.load(tmp_path / name).nbytes for name in writer.arrays)
    assert scaling.cache_bytes(3, 2, dtype, stride) == on_disk


def test_the_page_has_its_tables():
    """For K = 8 the page and docs/design.md name 33 GB of float16 and 17 GB of uint8."""
    sizes = [scaling.cache_bytes(2975, 8, dtype, 4) / 1e9 for dtype in ("float16", "uint8")]
    assert [round(size) for size in sizes] == [33, 17]
    page = scaling.PAGE.read_text(encoding="utf-8")
    measured = page.split("<!-- measured: begin -->")[1].split("<!-- measured: end -->")[0]
    assert f"| 8 | {sizes[0]:.1f} | {sizes[1]:.1f} |" in measured


def test_a_grid_takes_the_hours_of_its_steps_and_of_the_views_that_are_drawn():
    rates = scaling.Rates(1.0, 1.0, 1.0, 1.0, 1.0, step_s=3.6, where="")
    rows = [line.split("|")[1:7] for line in scaling._grids(rates) if line.startswith("| 8 |")]
    hours = {
        (int(frames.replace(",", "")), int(devices)): (teacher, students)
        for _, frames, devices, teacher, students, _ in rows
    }
    views_h = 2975 * 8 / 3600
    assert [float(cell) for cell in hours[2975, 1]] == pytest.approx([views_h, 8 * 60], rel=0.01)
    assert [float(cell) for cell in hours[2975, 64]] == pytest.approx([views_h / 8, 60 / 8], rel=0.01)
    # No run of 60,000 x 16 crops can draw more views than that of a million frames.
    assert float(hours[1_000_000, 8][0]) == pytest.approx(60_000 * 16 / 8 / 3600, rel=0.01)


@pytest.mark.parametrize("channels", [64, 256])
def test_the_page_has_the_bytes_of_features(tmp_path, channels):
    height, width = stored_grid(scaling.CROP_PX, FEATURE_STRIDE)
    with LogitsWriter(tmp_path, "uint8", (1, height, width, channels), names=(FEATURES, FEATURES_SCALE)) as writer:
        writer.append(np.zeros((1, height, width, channels), np.float32))
    stored = sum(np.load(tmp_path / name).nbytes for name in writer.arrays)
    assert stored == channels * (width + 4) * height
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert f"| features, D = {channels} | {stored / 1e6:.2f} | {stored * 2975 * 8 / 1e9:.1f} |" in page
