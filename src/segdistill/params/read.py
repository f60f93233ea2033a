"""The one reader of params.yaml: checks all of it and reports all errors together, by params path."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from segdistill.core.errors import UserError, passwords_in, raise_all, without_passwords
from segdistill.core.yaml_file import MAX_SHOWN, read_mapping, shown
from segdistill.params.archs import ARCHS, MIN_PX
from segdistill.params.model import ExportParams, FinetuneParams, Params, RunParams, TrainingParams, section_of

# Keys of earlier versions, and what to write instead.
RENAMED = {
    "kl_at": "this key is named kl_resolution now",
    "pictures": "this key is named images now",
    "drawn_by": "this key is named limit_views_to now",
    "student": "each run names its own network now; move this key into the entries of runs",
}
RUN_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
MAX_RUN_NAME = 100  # characters; file systems take 255 bytes, and names of temporary files are longer


def load_params(path: str | Path = "params.yaml") -> Params:
    """Return the checked content of `path`.

    Raises:
        UserError: the file is missing or no YAML mapping, or any value is not allowed; all errors in one message.
    """
    raw = read_mapping(Path(path), "sections", "take one with: cp profiles/tiny.yaml params.yaml")
    errors: list[str] = []
    params = _validated(Params, raw, "", errors)
    if params is not None:
        errors += _cross_errors(params)
    raise_all(map(without_passwords, errors), f"{path} has values that are not allowed")
    return params


def _validated(model: type[BaseModel], raw: dict, prefix: str, errors: list[str]) -> Any:
    # Through JSON, because pydantic's strict mode takes a list for a tuple only there.
    try:
        return model.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        errors += [_message(model, prefix, found) for found in error.errors()]
        return None


def _message(model: type[BaseModel], prefix: str, error: ErrorDetails) -> str:
    path = ".".join([*filter(None, [prefix]), *map(shown, error["loc"])])
    if error["type"] == "extra_forbidden":
        if (key := str(error["loc"][-1])) in RENAMED:
            return f"{path}: {RENAMED[key]}"
        here: type[BaseModel] = model
        for part in error["loc"][:-1]:  # down to the section that lacks the key
            field = here.model_fields.get(part) if isinstance(part, str) else None
            section = section_of(field.annotation) if field is not None else None
            if section is not None:
                here = section
            elif here is Params or part not in here.model_fields:
                here = RunParams
        return f"{path}: unknown key; allowed: {', '.join(sorted(here.model_fields))}"
    if error["type"] == "missing":
        return f"{path}: missing"
    message = error["msg"][0].lower() + error["msg"][1:]
    found = json.dumps(error["input"], default=str)
    return f"{path}: found {found[:MAX_SHOWN]}{'...' * (len(found) > MAX_SHOWN)}; {message}"


def _cross_errors(params: Params) -> Iterator[str]:
    size_px, stride = params.data.size_px, params.teacher_logits.stride
    if params.data.source != "synthetic" and params.data.root.startswith("~"):
        full = os.path.expanduser(params.data.root)  # noqa: PTH111 - Path raises for an unknown user
        yield f"data.root: found {params.data.root!r}; DVC does not expand ~, so write the path in full: {full}"
    if params.data.source == "synthetic" and size_px is None:
        yield "data.size_px: found null; the synthetic city needs [height, width]"
    for section in ("teacher", "distill"):
        crop_px = getattr(params, section).crop_px
        if size_px is not None and (crop_px[0] > size_px[0] or crop_px[1] > size_px[1]):
            yield f"{section}.crop_px: found {list(crop_px)}; at most the frame, data.size_px {list(size_px)}"
        if min(crop_px) < MIN_PX:
            yield f"{section}.crop_px: found {list(crop_px)}; at least {MIN_PX} pixels a side"
    crop_px = params.distill.crop_px
    if any(side % stride for side in crop_px):
        nearest = [max(stride, round(side / stride) * stride) for side in crop_px]
        yield f"distill.crop_px: found {list(crop_px)}; multiples of teacher_logits.stride {stride}, such as {nearest}"
    if len(set(params.teacher_logits.kinds)) < len(params.teacher_logits.kinds):
        yield f"teacher_logits.kinds: found {list(params.teacher_logits.kinds)}; each kind at most once"
    teacher = params.teacher
    for key in ("checkpoint", "scales"):
        found = getattr(teacher, key)
        if isinstance(found, tuple) and (not found or len(set(found)) < len(found)):
            yield f"teacher.{key}: found {list(found)}; allowed are one or more, each once"
    if "online" in params.teacher_logits.kinds and not teacher.is_one_net:
        yield (
            f"teacher_logits.kinds: found online with the teacher {teacher.described}; online runs the teacher in "
            "every step, and allowed for that is one torch network: no list, no ONNX file, no flip, no scales"
        )
    yield from _network_errors("teacher", teacher.arch, teacher)
    if not any(run.teacher == "none" for run in params.runs.values()):
        yield "runs: no control; allowed is a sweep with at least one run of alpha 0 and teacher none"
    if params.tracking.uri and passwords_in(params.tracking.uri):
        yield (
            "tracking.uri: holds a password, which git and dvc.lock would keep; allowed is a URI without, and in the "
            "environment MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all of it as MLFLOW_TRACKING_URI"
        )
    for name in params.runs:
        yield from _run_errors(params, name)


def _network_errors(path: str, arch: str, settings: TrainingParams) -> Iterator[str]:
    if settings.output_stride not in ARCHS[arch].output_strides:
        allowed = " or ".join(map(str, ARCHS[arch].output_strides))
        yield f"{path}.output_stride: found {settings.output_stride}; {arch} can be built at {allowed}"
    if settings.init == "imagenet" and not ARCHS[arch].has_imagenet_weights:
        yield f"{path}.init: found imagenet; torchvision has no weights for {arch}, allowed are random and a file"


def _run_errors(params: Params, name: str) -> Iterator[str]:
    path, run = f"runs.{shown(name)}", params.runs[name]
    if not RUN_NAME.fullmatch(name) or len(name) > MAX_RUN_NAME:
        allowed = f"up to {MAX_RUN_NAME} lower-case letters, digits and single dashes between them"
        yield f"{path[:MAX_SHOWN]}: a run is named by {allowed}"
    if name == "teacher":
        yield f"{path}: this name is taken, by the teacher's own row; any other will do"
    if (run.alpha == 0) != (run.teacher == "none"):
        yield f"{path}: found alpha {run.alpha} with teacher {run.teacher}; a control has alpha 0 and teacher none"
    if run.teacher != "none" and run.teacher not in params.teacher_logits.kinds:
        kinds = list(params.teacher_logits.kinds)
        yield f"{path}.teacher: found {run.teacher}; teacher_logits.kinds builds {kinds}"
    nested: list[str] = []
    _validated(FinetuneParams, params.finetune.model_dump() | run.finetune, f"{path}.finetune", nested)
    _validated(ExportParams, params.export.model_dump() | run.export, f"{path}.export", nested)
    yield from nested
    stored = params.teacher_logits.limit_views_to
    if not nested and stored is not None and run.teacher == "views":  # else the logits of all its views are stored
        first, further = params.distill_settings(name), params.finetune_settings(name)
        steps = {"distill": first.steps, "finetune": further.steps if further.alpha > 0 else 0}
        fits = all(steps[phase] <= most for phase, most in stored.steps.items())
        if not fits or (first.seed, first.batch_size) != (params.seed, stored.batch_size):
            yield (
                f"{path}: found {steps} steps with batches of {first.batch_size} and seed {first.seed}; "
                f"teacher_logits.limit_views_to stores what up to {stored.steps} with batches of {stored.batch_size} "
                f"and seed {params.seed} draw, and null stores all views"
            )
    if run.finetune.get("alpha") and run.teacher == "none":
        yield f"{path}.finetune.alpha: found {run.finetune['alpha']}; a control has no teacher to learn from"
    yield from _network_errors(path, run.student, params.distill_settings(name))


def known_run(params: Params, name: str) -> str:
    """Return `name`; raise a UserError when params.yaml has no run of that name."""
    if name not in params.runs:
        raise UserError(f"runs: no run is named {name!r}; params.yaml has {', '.join(params.runs)}")
    return name
