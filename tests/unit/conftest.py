"""Fixtures that tests of several files share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An MLflow database without runs, to be copied: MLflow makes one in dozens of commits that wait for the disk."""
    from segdistill.tracking.store import configure_mlflow

    configure_mlflow()
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def home(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params and metrics of a small sweep, to be tracked from into an empty store."""
    from support.sweep_on_disk import enter_sweep

    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
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
