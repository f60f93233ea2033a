"""The stages that dvc.yaml makes of params.yaml, by name."""

from __future__ import annotations

import os

from segdistill.core.errors import raise_all
from segdistill.core.files import copy_whole
from segdistill.core.log import logger
from segdistill.params.model import Params
from segdistill.paths import student_outputs

# Keys with a default that dvc.yaml names, so that DVC does not run without them, and the default.
NAMED_IN_DVC = {
    "seeds": "[]",
    "teacher_logits.limit_views_to": "null",
    "teacher_logits.mirrored": "false",
    "teacher_logits.feature_channels": "0",
    "distill.scale_range": "[1.0, 1.0]",
}
TRAININGS = ("distill", "steplr-finetune")
OF_A_RUN = (*TRAININGS, "export-onnx")
REPEAT = "-repeat"  # behind each of these in the stages of a repetition


def shared_stages(params: Params) -> list[str]:
    """Return the stages that come before all runs."""
    return ["prepare", "teacher-check", *(f"teacher-logits@{kind}" for kind in params.teacher_logits.kinds)]


def student_stages(params: Params) -> dict[str, list[str]]:
    """Return the stages of each student by its name, in their order: those of each run, then of each repetition."""
    repetitions = [name for run in params.runs for name in params.repetitions(run)]
    of_runs = {run: [f"{stage}@{run}" for stage in OF_A_RUN] for run in params.runs}
    return of_runs | {name: [f"{stage}{REPEAT}@{name}" for stage in OF_A_RUN] for name in repetitions}


def all_stages(params: Params) -> list[str]:
    """Return all stages, in the order of dvc.yaml."""
    of_runs = [f"{stage}@{run}" for stage in OF_A_RUN for run in params.runs]
    # Also with the seed that a run has already, for which nothing is trained.
    repeats = [f"{stage}{REPEAT}@{run}-{seed}" for stage in OF_A_RUN for run in params.runs for seed in params.seeds]
    return [*shared_stages(params), *of_runs, *repeats, "benchmark", "report"]


def check_named_in_dvc(params: Params) -> None:
    """Raise a UserError that names all keys that DVC will miss: it misses each only when its stage starts."""
    errors = []
    for key, default in NAMED_IN_DVC.items():
        *section, name = key.split(".")
        if name not in (getattr(params, section[0]) if section else params).model_fields_set:
            errors.append(f"{key}: missing, and DVC needs it; {default} is as before there was this key")
    raise_all(errors, "params.yaml lacks keys of this version")


def announce_stage(params: Params) -> None:
    """Log how far `dvc repro` is, in a stage that DVC started: "distill@vanilla: stage 4 of 14".

    DVC runs stages in about this order, and does not say which of them it will skip.

    Raises:
        UserError: DVC will miss a key of params.yaml in this stage or a later one.
    """
    stages, name = all_stages(params), os.environ.get("DVC_STAGE", "")
    if name in stages:
        check_named_in_dvc(params)
        logger.info("%s: stage %d of %d", name, stages.index(name) + 1, len(stages))


def copied_from_run(params: Params, stage: str, name: str) -> bool:
    """Copy what `stage` wrote of RUN to `name`, RUN-SEED, if RUN has that seed itself; return whether it has.

    Nobody reads the copies. DVC has the stages of each run with each of `seeds`, and wants what they write.
    """
    runs = {f"{run}-{seed}": run for run in params.runs for seed in params.seeds if seed == params.seed_of(run)}
    if name not in runs:
        return False
    announce_stage(params)
    logger.info("%s: copied from %s, which has this seed", name, runs[name])
    for source, copy in zip(student_outputs(stage, runs[name]), student_outputs(stage, name), strict=True):
        copy_whole(source, copy)
    return True
