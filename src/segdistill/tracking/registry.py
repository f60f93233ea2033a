"""Register the champion in MLflow's model registry, in a form that MLflow can serve.

A version is found by the hash of its ONNX file, so only another file adds one.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.core.provenance import file_sha256, package_versions
from segdistill.params.model import WEIGHT_KEYS, Params
from segdistill.results.champion import RULE, ModelFile
from segdistill.results.summary import summarise

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

ALIAS = "champion"
FILE_TAG = "file_sha256"
READY_S = 30  # for a version to become ready; SQL stores have it at once
EXAMPLE_PX = (32, 64)  # (H, W) of the input example


class Champion(NamedTuple):
    """The file to ship: `name` is that of the registered model; `path` and the hashes are of the file on disk."""

    name: str
    file: ModelFile
    path: Path
    sha256: str
    weights_sha256: str


def update_champion(
    client: MlflowClient, params: Params, metrics: Path, runs: Mapping[str, tuple[Run, dict[str, str]]]
) -> None:
    """Set the alias on the file to ship, adding a version of it if there is none; without such a file remove the alias.

    Do nothing before every run is measured, or with tracking.model null.

    Args:
        runs: MLflow's run, and its params there, by name.

    Raises:
        UserError: the file to ship is not there.
    """
    name = params.tracking.model
    if name is None:
        return
    try:
        summary = summarise(params, metrics)
    except UserError:
        return
    known, file = client.search_registered_models(f"name = '{name}'"), summary.champion
    if file is None:
        # Whoever serves models:/NAME@champion would get a file that the report says not to ship.
        if known and ALIAS in client.get_registered_model(name).aliases:
            client.delete_registered_model_alias(name, ALIAS)
            logger.info("MLflow: there is nothing to ship, so no version of %s is the %s any more", name, ALIAS)
        return
    if file.run not in runs:  # its metrics are of other settings
        return
    path = metrics.parent / file.path
    if not path.is_file():
        raise UserError(f"{file.path}: no such file, so it is not registered; dvc checkout or dvc pull brings it")
    weights_sha256 = summary.run(file.run).files["finished"]["weights_sha256"]
    champion = Champion(name, file, path, file_sha256(path), weights_sha256)
    if not known:
        client.create_registered_model(name, description=f"The student to ship: {RULE}.")
    run, run_params = runs[file.run]
    version = _first_version(client, champion) or _add_version(client, champion, run, run_params)
    for key, value in _tags(champion, run_params).items():
        if version.tags.get(key) != value:
            client.set_model_version_tag(name, version.version, key, value)
    if str(client.get_registered_model(name).aliases.get(ALIAS)) != str(version.version):
        client.set_registered_model_alias(name, ALIAS, version.version)


def _first_version(client: MlflowClient, champion: Champion) -> ModelVersion | None:
    """Return the version of this very file; the first, where there are several."""
    found = client.search_model_versions(f"name = '{champion.name}' and tags.`{FILE_TAG}` = '{champion.sha256}'")
    return min(found, key=lambda version: int(version.version), default=None)


def _tags(champion: Champion, params: dict[str, str]) -> dict[str, str]:
    file = champion.file
    measured = {"mean_iou": file.mean_iou, "p50_ms": file.p50_ms}
    return {
        "run": file.run,
        "file": file.path,
        "precision": file.precision,
        **{name: f"{value:.4f}" for name, value in measured.items() if value is not None},
        **{name: params[name] for name in (*WEIGHT_KEYS, "lr", "student", "teacher") if name in params},
        "weights_sha256": champion.weights_sha256,
        FILE_TAG: champion.sha256,
    }


def _add_version(client: MlflowClient, champion: Champion, run: Run, params: dict[str, str]) -> ModelVersion:
    from mlflow.entities import LoggedModelOutput

    # By the client's own calls: log_model works on an active run and one store for the whole process.
    run_id, file = run.info.run_id, champion.file
    model = client.create_logged_model(
        run.info.experiment_id, name=champion.name, source_run_id=run_id, params=params, model_type="segmentation"
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            _save(champion, Path(folder) / "model", run_id, model)
            client.log_model_artifacts(model.model_id, str(Path(folder) / "model"))
        client.finalize_logged_model(model.model_id, "READY")
        version = client.create_model_version(
            champion.name,
            model.artifact_location,
            run_id,
            tags=_tags(champion, params),
            description=f"**{file.run}** as {file.precision} ONNX (`{file.path}`): {RULE}.",
            await_creation_for=READY_S,
            model_id=model.model_id,
        )
        # MLflow gives a number to one version only and in the order of time. Of two machines that register a file at
        # once, the second therefore sees the version of the first here, and takes its own back.
        first = _first_version(client, champion)
        if first and first.version != version.version:
            client.delete_model_version(champion.name, version.version)
            client.delete_logged_model(model.model_id)
            return first
        # As log_model does: the run's page names the model, and the model's page its version.
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        named = json.dumps([{"name": champion.name, "version": version.version}])
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": named})
    except Exception:
        with contextlib.suppress(Exception):  # the first error is the one to report
            client.delete_logged_model(model.model_id)
        raise
    return version


def _save(champion: Champion, folder: Path, run_id: str, logged) -> None:
    """Write the file in MLflow's ONNX flavour: signature, input example, requirements at the versions in use."""
    import mlflow.onnx
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from segdistill.nets.onnx_session import INPUT, OUTPUTS, read_for_serving

    onnx_model, facts = read_for_serving(champion.path)
    if facts.get("weights_sha256") != champion.weights_sha256:
        raise UserError(
            f"{champion.path}: exported from other weights than those that metrics/ was measured with; run dvc checkout"
        )
    uint8 = np.dtype(np.uint8)
    # A small frame: the example is kept as JSON, in which a whole one would outweigh the model.
    height, width = EXAMPLE_PX
    shades_W = np.linspace(0, 255, width, dtype=np.uint8)
    example_1HW3 = np.broadcast_to(shades_W[None, None, :, None], (1, height, width, 3)).copy()
    requirements = package_versions("mlflow", "numpy", "onnx", "onnxruntime")
    mlflow.onnx.save_model(
        onnx_model,
        folder,
        mlflow_model=Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id),
        signature=ModelSignature(
            Schema([TensorSpec(uint8, (-1, -1, -1, 3), INPUT)]), Schema([TensorSpec(uint8, (-1, -1, -1), OUTPUTS[0])])
        ),
        input_example={INPUT: example_1HW3},
        pip_requirements=[f"{name}=={version}" for name, version in requirements.items()],
        onnx_execution_providers=["CPUExecutionProvider"],
        metadata={"segdistill": facts},
        save_as_external_data=False,
    )
