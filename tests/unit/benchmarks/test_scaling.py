"""The arithmetic of docs/scaling.md against written files."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scaling
from segdistill.teacher_logits.build import LogitsWriter


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
