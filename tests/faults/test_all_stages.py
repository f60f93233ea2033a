"""All stages and commands on the fewest frames, with a tracking server that is not there and a password in its URI."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from segdistill.core.files import read_json
from support.finished_project import CONTROL, FINISHING, PASSWORD, STUDENT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory, environment) -> SimpleNamespace:
    """The project after all stages and commands, and how each call ended."""
    project = trained.project.copy(tmp_path_factory.mktemp("finished") / "project")
    export, *others = FINISHING
    calls = {export: project.call(*export.split(), **environment)}
    # Exporting takes seconds, and once is enough: the control gets the metrics of the student.
    metrics = project.path(f"metrics/runs/{STUDENT}/export.json").read_bytes()
    project.write(f"metrics/runs/{CONTROL}/export.json", metrics)
    calls |= {call: project.call(*call.split(), **environment) for call in others}
    return SimpleNamespace(project=project, calls=trained.calls | calls)


def test_a_password_in_the_environment_is_in_no_file_and_no_message(finished):
    for done in finished.calls.values():
        assert PASSWORD not in done.out + done.err
    files = [path for path in finished.project.folder.rglob("*") if path.is_file()]
    suffixes = {path.suffix for path in files}
    assert {".safetensors", ".onnx", ".json", ".csv", ".html", ".npy", ".npz", ".png"} <= suffixes
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(("call", "exit_code"), [("report", 0), ("track", 1)])
def test_a_server_that_is_not_there_is_one_warning(finished, call, exit_code):
    (warning,) = finished.calls[call].err.splitlines()
    assert warning.startswith("warning: MLflow at http://127.0.0.1:")
    assert finished.calls[call].exit_code == exit_code


def test_one_frame_is_a_split_to_every_stage(finished):
    index = read_json(finished.project.path("data/prepared/index.json"))
    frames = {split: len(facts["frames"]) for split, facts in index["splits"].items()}
    assert frames == {"train": 2, "holdout": 1, "val": 1}
    failed = {call: done.err for call, done in finished.calls.items() if done.exit_code}
    assert failed.keys() == {"track", "ui"}, failed  # which need the server
