"""The files of docs/mlflow-server: Docker and systemd start the same server, the one that tests start."""

from __future__ import annotations

import tomllib
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "mlflow-server"


def test_the_unit_and_the_compose_file_start_one_server():
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FOLDER / "mlflow.service")
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["mlflow"]
    started = unit["Service"]["ExecStart"].removeprefix("/opt/mlflow/bin/")
    assert service["command"] == started.replace("127.0.0.1", "0.0.0.0")
    assert Path(unit["Service"]["EnvironmentFile"]).name == service["env_file"] == "server.env"


def test_the_image_has_the_packages_of_the_extra():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["mlflow"]
    installed = service["build"]["dockerfile_inline"]
    assert all(f'"{package}"' in installed for package in project["optional-dependencies"]["postgres"])
    assert '"mlflow>=3.17,<4"' in installed
    assert "mlflow>=3.17" in project["dependencies"]
