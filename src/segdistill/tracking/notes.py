"""The note of each run in MLflow, two lines of Markdown."""

from __future__ import annotations

from html import escape

from segdistill.params.model import Params


def student_note(params: Params, run: str) -> str:
    """Return what `run` learns from, for how long, and where its files are."""
    settings, further = params.distill_settings(run), params.finetune_settings(run).steps
    how = "learns from the labels alone, as a control"
    if settings.teacher != "none":
        taught = f"({settings.teacher}, {settings.method}, T {settings.temperature:g})"
        how = f"learns from {_described(params)} {taught}"
        weights = settings.loss_weights
        how += f" with weight {weights.distill:g} and from the labels with {weights.label:g}"
    steps = f"{settings.steps} steps of {settings.batch_size} crops at lr {settings.lr:g}"
    steps += f", then {further} steps of finetuning"
    return f"**{settings.network}** {how}: {steps}.  \nWeights and ONNX files: `models/runs/{run}/`."


def teacher_note(params: Params) -> str:
    """Return where the teacher comes from, and where its weights are."""
    teacher = params.teacher
    files = escape(", ".join(teacher.checkpoints))
    how = f"read from {files}" if files else f"trained here for {teacher.steps} steps"
    weights = "models/teacher/teacher.safetensors" if teacher.is_one_net else "models/teacher/"
    return f"**{_described(params)}**, the teacher of this sweep, {how}.  \nWeights: `{weights}`."


def _described(params: Params) -> str:
    # File names are in it, and MLflow renders the note as Markdown, in which HTML is HTML.
    return escape(params.teacher.described)
