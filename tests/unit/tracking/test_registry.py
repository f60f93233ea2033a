"""The champion in MLflow's model registry: one version per file, the alias on the one that the rule picks."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from segdistill.core.files import read_json, write_json
from segdistill.core.provenance import file_sha256
from segdistill.nets.onnx_session import read_for_serving
from segdistill.tracking import registry
from segdistill.tracking.mlflow import track
from support.fake_metrics import sweep_params, write_metrics

NAME = "segdistill-student"
METRICS = Path("metrics")
# By fake_metrics: 52.5% at 20 ms as int8, where the best file has 53% at 30 ms.
CHAMPION = Path("models/runs/a03/student.int8.onnx")
FASTER = Path("models/runs/vanilla/student.int8.onnx")


def write_onnx(path: Path, channel: str = "ReduceMax", weights_sha256: str = "0") -> None:
    """Write a file like an exported student's; the class of a pixel is its brightest (or darkest) channel."""
    nodes = [
        helper.make_node(channel, ["image", "axes"], ["classes"], keepdims=0),
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["logits"], perm=[0, 3, 1, 2]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])
    outputs = [
        helper.make_tensor_value_info("classes", TensorProto.UINT8, ["n", "h", "w"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3, "h", "w"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [3])
    graph = helper.make_graph(nodes, "tiny", [image], outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"segdistill": json.dumps({"weights_sha256": weights_sha256, "arch": "tiny"})})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A folder whose runs are tracked and whose champion is registered."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        write_metrics(METRICS)
        write_onnx(CHAMPION)
        assert track(sweep_params(), METRICS)
    return folder


@pytest.fixture
def here(tracked, tmp_path, monkeypatch):
    shutil.copytree(tracked, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def client():
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db")


def versions() -> dict[int, str]:
    """The run of each version, and the alias behind that of the champion."""
    alias = int(client().get_model_version_by_alias(NAME, "champion").version)
    found = client().search_model_versions(f"name = '{NAME}'")
    return {
        int(one.version): one.tags["run"] + (" champion" if int(one.version) == alias else "")
        for one in sorted(found, key=lambda one: int(one.version))
    }


def make_vanilla_the_champion() -> None:
    export = read_json(METRICS / "runs/vanilla/export.json")
    export["int8"]["mean_iou"] = 0.6
    write_json(METRICS / "runs/vanilla/export.json", export)


def test_the_champion_says_what_it_is(here):
    assert versions() == {1: "a03 champion"}
    found = client().get_model_version(NAME, "1")
    assert found.tags | {"run": "a03", "alpha": "0.3", "mean_iou": "0.5250", "precision": "int8"} == found.tags
    assert found.tags["file"] == str(CHAMPION)
    assert found.tags["weights_sha256"] == "0"
    source = client().get_run(found.run_id)
    assert source.info.run_name == "a03"
    (output,) = source.outputs.model_outputs
    logged = client().get_logged_model(output.model_id)
    assert (logged.artifact_location, logged.status.value) == (found.source, "READY")
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": found.version}]


def test_the_model_is_pinned_described_and_answers_with_classes_alone(here, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/mlflow.db")
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    requirements = {f"{name}=={version(name)}" for name in ("mlflow", "numpy", "onnx", "onnxruntime")}
    written = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@champion")) / "requirements.txt"
    assert set(written.read_text().split()) == requirements
    (image,), (classes,) = model.metadata.signature.inputs, model.metadata.signature.outputs
    assert (image.name, image.shape, image.type) == ("image", (-1, -1, -1, 3), np.dtype(np.uint8))
    assert (classes.name, classes.shape, classes.type) == ("classes", (-1, -1, -1), np.dtype(np.uint8))
    assert model.metadata.metadata["segdistill"]["arch"] == "tiny"
    assert model.input_example["image"].shape == (1, 32, 64, 3)
    frame = np.array([[[[1, 7, 3], [0, 0, 255]]]], np.uint8)
    answer = model.predict({"image": frame})
    assert answer.keys() == {"classes"}
    assert answer["classes"].tolist() == [[[7, 255]]]


def test_tracking_again_adds_no_version_and_another_file_one(here):
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03 champion"}
    write_onnx(CHAMPION, "ReduceMin")
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03", 2: "a03 champion"}
    write_onnx(CHAMPION)  # as it was: that version is there
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03 champion", 2: "a03"}


def test_a_registered_model_that_a_user_deleted_is_registered_again(here):
    client().delete_registered_model(NAME)
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03 champion"}


def test_the_alias_moves_to_another_champion(here):
    make_vanilla_the_champion()
    write_onnx(FASTER, "ReduceMin")
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03", 2: "vanilla champion"}


def test_a_file_that_two_machines_register_at_once_is_the_version_of_the_first(here, monkeypatch):
    make_vanilla_the_champion()
    write_onnx(FASTER, "ReduceMin")
    save, tags = registry._save, {"run": "vanilla", registry.FILE_TAG: file_sha256(FASTER)}

    def save_while_another_machine_registers(*arguments) -> None:
        save(*arguments)
        client().create_model_version(NAME, "elsewhere", tags=tags)

    monkeypatch.setattr(registry, "_save", save_while_another_machine_registers)
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03", 2: "vanilla champion"}
    assert client().get_model_version(NAME, "2").source == "elsewhere"
    assert len(client().search_logged_models(["1"])) == 1, "that of a03"


def test_nothing_to_ship_removes_the_alias_until_a_file_passes_the_floor_again(here):
    too_high = {"report": {"min_mean_iou": 0.9}}
    assert track(sweep_params(**too_high), METRICS)
    assert client().get_registered_model(NAME).aliases == {}
    assert [one.tags["run"] for one in client().search_model_versions(f"name = '{NAME}'")] == ["a03"]
    assert track(sweep_params(**too_high), METRICS)
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03 champion"}


def test_nothing_to_ship_registers_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_metrics(METRICS)
    assert track(sweep_params(report={"min_mean_iou": 0.9}), METRICS)
    assert client().search_registered_models() == []


@pytest.mark.parametrize("defect", ["no file", "other weights", "no ONNX"])
def test_a_file_that_does_not_fit_is_one_warning_and_the_rows_are_there(here, defect, capfd):
    make_vanilla_the_champion()
    if defect == "other weights":
        write_onnx(FASTER, weights_sha256="1")
    elif defect == "no ONNX":
        FASTER.parent.mkdir(parents=True)
        FASTER.write_text("no ONNX", encoding="utf-8")
    assert not track(sweep_params(), METRICS)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: MLflow at ")
    assert str(FASTER) in line
    assert versions() == {1: "a03 champion"}
    assert not client().search_logged_models(["1"], "name = 'segdistill-student' AND status = 'PENDING'")
    (row,) = client().search_runs(["1"], "attributes.run_name = 'vanilla'")
    assert row.data.metrics["onnx_int8/mean_iou"] == 0.6


def test_a_plain_file_store_is_one_warning(here, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Path("mlruns").resolve().as_uri())
    assert not track(sweep_params(), METRICS)
    (line,) = capfd.readouterr().err.splitlines()
    assert "MLflow cannot write there; allowed are sqlite:///FILE" in line


def test_a_store_without_a_registry_is_one_warning(here, monkeypatch, capfd):
    from mlflow import MlflowClient

    def missing(*_: object, **__: object) -> None:
        raise NotImplementedError("this store has no model registry")

    monkeypatch.setattr(MlflowClient, "search_registered_models", missing)
    assert not track(sweep_params(), METRICS)
    (line,) = capfd.readouterr().err.splitlines()
    assert "this store has no model registry" in line


def test_nothing_is_registered_without_a_name_or_before_all_is_measured(here, capfd):
    make_vanilla_the_champion()  # has no file, which would be a warning
    assert track(sweep_params(tracking={"model": None}), METRICS)
    (METRICS / "benchmark.json").unlink()
    assert track(sweep_params(), METRICS)
    assert versions() == {1: "a03 champion"}
    assert capfd.readouterr().err == ""


def test_only_exported_students_are_read_for_serving(tmp_path):
    write_onnx(tmp_path / "student.onnx")
    model, facts = read_for_serving(tmp_path / "student.onnx")
    assert [output.name for output in model.graph.output] == ["classes"]
    assert facts == {"weights_sha256": "0", "arch": "tiny"}
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx: has outputs \['classes'\]; an exported student has"):
        read_for_serving(tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"no\.onnx: no such file"):
        read_for_serving(tmp_path / "no.onnx")
