"""What each run says about itself in MLflow, in two lines of Markdown."""

from __future__ import annotations

from html import escape

from segdistill.params.model import Params


def student_note(params: Params, run: str) -> str:
    """What `run` learns from, for how long, and where its files are."""
    settings, further = params.distill_settings(run), params.finetune_settings(run).steps
    how = "learns from the labels alone, as a control"
    if settings.teacher != "none":
        taught = f"({settings.teacher}, {settings.method}, T {settings.temperature:g})"
        how = f"learns from {_described(params)} {taught}"
        how += f" with weight {settings.alpha:g} and from the labels with {1 - settings.alpha:g}"
    steps = f"{settings.steps} steps of {settings.batch_size} crops at lr {settings.lr:g}, then {further} further ones"
    return f"**{settings.student}** {how}: {steps}.  \nWeights and ONNX files: `models/runs/{run}/`."


def teacher_note(params: Params) -> str:
    """Where the teacher comes from, and where its weights are."""
    teacher = params.teacher
    files = escape(", ".join(teacher.checkpoints))
    how = f"read from {files}" if files else f"trained here for {teacher.steps} steps"
    weights = "models/teacher/teacher.safetensors" if teacher.is_one_net else "models/teacher/"
    return f"**{_described(params)}**, the teacher of this sweep, {how}.  \nWeights: `{weights}`."


def _described(params: Params) -> str:
    # File names are in it, and MLflow renders the note as Markdown, in which HTML is HTML.
    return escape(params.teacher.described)


def curve_note(run: str, phase: str) -> str:
    """What the curve of `phase` (train, distill or finetune) of `run` shows."""
    of = "the teacher" if phase == "train" else f"**{run}**"
    what = {"train": "Training", "distill": "First steps", "finetune": "Further steps"}[phase]
    return (
        f"{what} of {of}: learning rate, losses (each the mean since the point before) and holdout mIoU by step.  \n"
        "Pictures: one frame of the holdout as the net sees it then, and its truth."
    )
