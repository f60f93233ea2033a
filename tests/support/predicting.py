"""A folder with images, and `segdistill predict` called in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from support.model_files import smooth_frame

STEM = "ivyport_000000_000019"


def make_street(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the empty `folder`, with images/a.png and images/city/STEM_leftImg8bit.png."""
    monkeypatch.chdir(folder)
    (folder / "images/city").mkdir(parents=True)
    for name, size_px, seed in (("a.png", (49, 65), 1), (f"city/{STEM}_leftImg8bit.png", (48, 64), 2)):
        Image.fromarray(smooth_frame(size_px, seed)).save(folder / "images" / name)
    return folder


def call(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--threads", "1"])


def done(*arguments: object):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def written(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def opened(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
