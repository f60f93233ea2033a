"""Fixtures that tests of several files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params and metrics of a small sweep, to be tracked from."""
    from support.sweep_on_disk import enter_sweep

    return enter_sweep(tmp_path, monkeypatch)


@pytest.fixture
def files(small_models):
    """The files of a model to predict with."""
    return small_models


@pytest.fixture
def street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two images to predict."""
    from support.predicting import make_street

    return make_street(tmp_path, monkeypatch)
