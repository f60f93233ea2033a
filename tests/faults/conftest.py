"""What the tests of bad input share: a trained project, made once, and what a refusal has to look like."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from support.city_on_disk import write_city
from support.finished_project import (
    PASSWORD,
    SIZE_PX,
    TRAIN,
    TRAINING,
    VAL,
    Project,
    start_project,
)


@pytest.fixture(scope="session")
def environment():
    """A tracking server that is not there, and whose URI has a password."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and never listens
        yield {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@127.0.0.1:{closed.getsockname()[1]}"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, environment) -> SimpleNamespace:
    """The project after its trainings, and how each call ended."""
    project = start_project(tmp_path_factory.mktemp("trained"))
    return SimpleNamespace(
        project=project, calls={call: project.call(*call.split(), **environment) for call in TRAINING}
    )


@pytest.fixture
def project(trained, tmp_path: Path) -> Project:
    """A copy of the trained project, to be broken."""
    return trained.project.copy(tmp_path / "project")


@pytest.fixture
def city(project: Project) -> Project:
    """The project with a tiny Cityscapes in raw/, which it has not prepared yet."""
    write_city(project.path("raw"), TRAIN, VAL, SIZE_PX)
    project.set_params(data__source="cityscapes", data__root="raw", data__size_px=None)
    return project


@pytest.fixture
def refused(project: Project):
    """Call a stage that has to refuse its input in one message, and to leave everything as it was."""

    def refused(call: str, expected: list[str], **options) -> str:
        before = project.snapshot()
        done = project.call(*call.split(), **options)
        assert done.exit_code == 1, done
        assert "Traceback" not in done.out + done.err
        assert [line[:7] for line in done.err.splitlines()].count("error: ") == 1, done.err
        message = done.err[done.err.index("error: ") :]
        missing = [words for words in expected if words not in message]
        assert not missing, f"{missing} not in {message}"
        assert project.snapshot() == before
        return message

    return refused
