"""Write the params and metrics of a small sweep, and read what MLflow has of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.params.model import Params
from segdistill.params.read import load_params

PROFILE = Path(__file__).parents[2] / "profiles" / "tiny.yaml"
HEADER = "step,lr,loss,label_loss,distill_loss,holdout_mean_iou\n"
RUNS = {
    "vanilla": {"student": "deeplabv3plus_mobilenet", "alpha": 0.0, "lr": 0.01, "teacher": "none"},
    "a03-lr01": {"student": "deeplabv3plus_mobilenet", "alpha": 0.3, "lr": 0.01, "teacher": "views"},
}
METRICS = {
    "mean_loss": 1.2,
    "overall_acc": 0.8,
    "mean_iou": 0.3,
    "teacher_agreement": 0.7,
    "class_iou": {"road": 0.9, "traffic_light": 0.1, "train": None},
    "parameters": 5109779,
    "weights_sha256": "ab",
    "data_fingerprint": "24cffebde011c44aa086abf842a3a9b5",
    "git_revision": "0123456789ab-dirty",
}
MILLISECONDS = {"forward_p50_ms": 20.0, "end_to_end_p50_ms": 25.0, "end_to_end_p95_ms": 27.0}


def enter_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to `folder` and write params and metrics of RUNS there; its store is its own."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_params(RUNS)
    write_metrics(Path("metrics"), RUNS)
    return folder


def write_params(runs: dict, **tracking) -> Params:
    raw = yaml.safe_load(PROFILE.read_text(encoding="utf-8")) | {"runs": runs}
    raw["tracking"] |= {"model": None} | tracking
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return load_params()


def write_metrics(metrics: Path, runs: dict) -> None:
    network = dict.fromkeys(("torch", "torch_best", "onnx_float32", "onnx_int8"), MILLISECONDS)
    models = dict.fromkeys(["teacher", *runs], "net_os16")
    write(metrics / "benchmark.json", {"conditions": {}, "networks": {"net_os16": network}, "models": models})
    write(metrics / "teacher.json", METRICS | {"mean_iou": 0.5, "arch": "deeplabv3plus_resnet50"})
    write_image(metrics / "images" / "00001_image.png")
    write_curve(metrics / "teacher_curve.csv", 3)
    exported = METRICS | {"max_logit_difference": 1e-5, "class_agreement_with_torch": 0.999, "bytes": 20_000_000}
    for run in runs:
        folder = metrics / "runs" / run
        write(folder / "distill.json", METRICS | {"mean_iou": 0.2})
        write(folder / "finetune.json", METRICS)
        write(folder / "export.json", {"torch": METRICS, "float32": exported, "int8": exported | {"mean_iou": 0.29}})
        write_curve(folder / "distill_curve.csv", 40)
        write_curve(folder / "finetune_curve.csv", 5)
        write_image(folder / "images" / "00001_student.png")


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG" + path.name.encode())


def line(step: int, loss_factor: float = 1.0) -> str:
    return f"{step},0.01,{loss_factor * 3 / (step + 1)},1.5,0.1,{0.2 if step % 5 == 0 else ''}\n"


def write_curve(path: Path, points: int, loss_factor: float = 1.0) -> None:
    path.write_text(HEADER + "".join(line(step, loss_factor) for step in range(1, points + 1)), encoding="utf-8")


def runs_in() -> dict[str, list]:
    """Return the runs of the experiment by name; none before there is a store, which a client would make."""
    from mlflow import MlflowClient

    if not Path("mlflow.db").exists():
        return {}

    client, found = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db"), {}
    experiment = client.get_experiment_by_name("segdistill")
    for run in client.search_runs([experiment.experiment_id]) if experiment else ():
        run.histories = {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        run.files = sorted(
            file.path for folder in ("val", "metrics") for file in client.list_artifacts(run.info.run_id, folder)
        )
        found.setdefault(run.info.run_name, []).append(run)
    return found


def expected_points(points: int) -> list[int]:
    return list(range(1, points + 1))


IMAGE_KEY = "curve/frame 12 - predicted and truth"


def write_step_images(folder: Path, *steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for step in (None, *steps):
        name = "truth" if step is None else f"step_{step:06d}"
        Image.fromarray(np.full((4, 8), step or 0, np.uint8)).save(folder / f"00012_{name}.png")


def logged_images(run) -> list[tuple[str, int]]:
    """Return (key, step) of each image that MLflow's page can slide through; both its sizes must be there."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db")
    paths = [Path(file.path).name.split("+") for file in client.list_artifacts(run.info.run_id, "images")]
    by_suffix = {
        suffix: sorted(
            (name.replace("~", "/"), int(step)) for name, _, step, *rest in paths if rest[-1].endswith(suffix)
        )
        for suffix in ("png", "webp")
    }
    assert by_suffix["png"] == by_suffix["webp"]
    return by_suffix["png"]
