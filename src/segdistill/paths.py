"""Where the artifacts of a project are, relative to its root: the same paths that dvc.yaml names."""

from __future__ import annotations

import os
from pathlib import Path

PARAMS = Path("params.yaml")
PREPARED = Path("data/prepared")
TEACHER_LOGITS = Path("data/teacher_logits")
CHECKPOINTS, INITIAL_WEIGHTS = Path("checkpoints"), Path("initial_weights")
MODELS, METRICS = Path("models"), Path("metrics")
TEACHER = MODELS / "teacher"
TEACHER_WEIGHTS = "teacher.safetensors"  # in TEACHER, of a teacher that is one network
VAL_CLASSES = "val_classes.npz"  # in TEACHER and TEACHER_LOGITS/KIND: the teacher's class maps of val
# In run_models(RUN).
DISTILLED, FINETUNED = "distilled.safetensors", "finetuned.safetensors"
STUDENT_ONNX = {"float32": "student.onnx", "int8": "student.int8.onnx"}
# What each stage of a student writes, in run_models(RUN) and in run_metrics(RUN).
STUDENT_MODELS = {
    "distill": (DISTILLED,),
    "steplr-finetune": (FINETUNED,),
    "export-onnx": tuple(STUDENT_ONNX.values()),
}
STUDENT_METRICS = {
    "distill": ("distill.json", "distill_curve.csv", "distill_images"),
    "steplr-finetune": ("finetune.json", "finetune_curve.csv", "finetune_images", "images", "val"),
    "export-onnx": ("export.json",),
}
REPORT = Path("reports/index.html")
BENCHMARK = METRICS / "benchmark.json"
# Unfinished trainings and teacher logits; ignored by git and DVC. On a folder that machines share, each continues what
# another left.
SCRATCH = Path(os.environ.get("SEGDISTILL_SCRATCH") or "scratch")
LOGITS_BUILDS = "teacher-logits"  # in SCRATCH, by kind


def run_models(run: str, models: Path = MODELS) -> Path:
    """Return the folder of the weights and ONNX files of `run`."""
    return models / "runs" / run


def run_metrics(run: str, metrics: Path = METRICS) -> Path:
    """Return the folder of the metrics, curves and images of `run`."""
    return metrics / "runs" / run


def student_outputs(stage: str, run: str) -> list[Path]:
    """Return the files and folders that `stage` writes of `run`."""
    models, metrics = run_models(run), run_metrics(run)
    return [*(models / name for name in STUDENT_MODELS[stage]), *(metrics / name for name in STUDENT_METRICS[stage])]
