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
from segdistill.params.archs import FEATURE_STRIDE, MIN_PX, arch_facts, takes_backbone
from segdistill.params.model import (
    WEIGHT_KEYS,
    ExportParams,
    FinetuneParams,
    Params,
    RunBase,
    RunParams,
    TrainingParams,
    section_of,
)

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
    return checked(read_mapping(Path(path), "sections", "take one with: cp profiles/tiny.yaml params.yaml"), str(path))


def checked(raw: dict, source: str) -> Params:
    """Return the content of a params.yaml as params; `source` is what messages say it comes from.

    Raises:
        UserError: any value is not allowed; all errors in one message.
    """
    errors: list[str] = []
    params = _validated(Params, raw, "", errors)
    if params is not None:
        errors += _cross_errors(params)
    raise_all(map(without_passwords, errors), f"{source} has values that are not allowed")
    return params


def _validated(model: type[BaseModel], raw: dict, prefix: str, errors: list[str]) -> Any:
    # Through JSON, because pydantic's strict mode takes a list for a tuple only there.
    try:
        return model.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        errors += [_message(model, prefix, found) for found in _one_each(error.errors(), raw)]
        return None


def _one_each(found: list[ErrorDetails], raw: dict) -> Iterator[ErrorDetails]:
    """Yield one error for each value: pydantic yields one for each type that it may have, and counts right items."""
    by_place: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for error in found:
        place, here = error["loc"], raw
        for depth, part in enumerate(place):
            keys = here if isinstance(here, dict) else range(len(here)) if isinstance(here, list | tuple) else ()
            if part not in keys:
                # A missing key is named; what else is not there names a type of the value.
                place = place if error["type"] == "missing" else place[:depth]
                break
            here = here[part]
        by_place.setdefault(place, []).append(error | {"loc": place, "input": here})
    for place, (error, *others) in by_place.items():
        wrong_items = any(other != place and other[: len(place)] == place for other in by_place)
        if not (error["type"] == "too_short" and wrong_items):
            messages = dict.fromkeys(one["msg"].removeprefix("Input should be ") for one in (error, *others))
            yield error | {"msg": error["msg"] if not others else f"Input should be {' or '.join(messages)}"}


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
    if params.data.source == "synthetic" and params.data.unlabelled is not None:
        yield f"data.unlabelled: found {params.data.unlabelled!r}; the synthetic city has labels, and allows null"
    for section in ("teacher", "distill"):
        crop_px = getattr(params, section).crop_px
        if size_px is not None and (crop_px[0] > size_px[0] or crop_px[1] > size_px[1]):
            yield f"{section}.crop_px: found {list(crop_px)}; at most the frame, data.size_px {list(size_px)}"
        if min(crop_px) < MIN_PX:
            yield f"{section}.crop_px: found {list(crop_px)}; at least {MIN_PX} pixels a side"
        scale_range = getattr(params, section).scale_range
        if scale_range[0] > scale_range[1]:
            yield f"{section}.scale_range: found {list(scale_range)}; allowed is [smallest, largest]"
        if (
            size_px is not None
            and scale_range[1] < (least := max(crop_px[0] / size_px[0], crop_px[1] / size_px[1])) <= 1
        ):
            yield (
                f"{section}.scale_range: found {list(scale_range)}; crops of {list(crop_px)} fit into the frames "
                f"{list(size_px)} at scales from {least:.3f} on"
            )
    scale_range = params.distill.scale_range
    if "frame" in params.teacher_logits.kinds and scale_range != (1.0, 1.0):
        yield (
            f"teacher_logits.kinds: found frame with distill.scale_range {list(scale_range)}; frame allows [1.0, 1.0], "
            "because the logits of whole frames are of one scale"
        )
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
    smallest_px = [round(side * min(teacher.scales, default=1.0)) for side in params.distill.crop_px]
    if min(smallest_px) < MIN_PX <= min(params.distill.crop_px):
        yield (
            f"teacher.scales: found {list(teacher.scales)}; the teacher would see the crops of distill.crop_px at "
            f"{smallest_px}, allowed are scales with at least {MIN_PX} pixels a side"
        )
    if "online" in params.teacher_logits.kinds and not teacher.is_one_net:
        yield (
            f"teacher_logits.kinds: found online with the teacher {teacher.described}; online runs the teacher in "
            "every step, and allowed for that is one torch network: no list, no ONNX file, no flip, no scales"
        )
    if teacher.cross_fit and teacher.checkpoints:
        yield (
            f"teacher.cross_fit: found {teacher.cross_fit} with the checkpoint {teacher.described}; cross-fitting "
            "trains the teachers, and allowed for that is teacher.checkpoint null"
        )
    if teacher.cross_fit and "online" in params.teacher_logits.kinds:
        yield (
            f"teacher_logits.kinds: found online with teacher.cross_fit {teacher.cross_fit}; online runs one teacher "
            "on all frames, and allowed for a cross-fitted one are views and frame"
        )
    if channels := params.teacher_logits.feature_channels:
        found = f"teacher_logits.feature_channels: found {channels}"
        if not teacher.is_one_net or teacher.cross_fit:
            described = f"{teacher.described}, cross-fitted" if teacher.cross_fit else teacher.described
            yield (
                f"{found} with the teacher {described}; features are those of one torch network: no list, no ONNX "
                "file, no flip, no scales, no cross_fit; allowed for others is 0"
            )
        if any(side % FEATURE_STRIDE for side in crop_px):  # else a flip would move features by a part of a cell
            yield f"{found} with distill.crop_px {list(crop_px)}; allowed are multiples of {FEATURE_STRIDE}"
        if "views" not in params.teacher_logits.kinds:
            yield f"{found} with teacher_logits.kinds {list(params.teacher_logits.kinds)}; features are of views"
    timed_px = params.benchmark.size_px
    if timed_px is not None and min(timed_px) < MIN_PX:
        yield f"benchmark.size_px: found {list(timed_px)}; at least {MIN_PX} pixels a side"
    if len(set(params.benchmark.engines)) < len(params.benchmark.engines):
        yield f"benchmark.engines: found {list(params.benchmark.engines)}; each engine at most once"
    yield from _network_errors("teacher", "arch", teacher.arch, teacher.backbone, teacher)
    yield from _warmup_error("teacher", teacher.warmup_steps, teacher.steps)
    if params.distill.backbone is not None and not any(takes_backbone(run.student) for run in params.runs.values()):
        yield f"distill.backbone: found {params.distill.backbone!r}; no run has a student that takes one (*_timm)"
    if not any(run.teacher == "none" for run in params.runs.values()):
        yield "runs: no control; allowed is a sweep with at least one run of alpha 0 and teacher none"
    if params.tracking.uri and passwords_in(params.tracking.uri):
        yield (
            "tracking.uri: holds a password, which git and dvc.lock would keep; allowed is a URI without, and in the "
            "environment MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or all of it as MLFLOW_TRACKING_URI"
        )
    yield from _seed_errors(params)
    yield from _devices_errors(params)
    for name in params.runs:
        yield from _run_errors(params, name)


def _devices_errors(params: Params) -> Iterator[str]:
    """Yield which trainings cannot be shared by so many devices."""
    devices = params.compute.devices
    trainings: dict[str, TrainingParams] = {f"runs.{shown(run)}": params.distill_settings(run) for run in params.runs}
    if not params.teacher.checkpoints:
        trainings["teacher"] = params.teacher
    for path, settings in trainings.items() if devices > 1 else ():
        if settings.batch_size % devices:
            yield (
                f"compute.devices: found {devices} with {path}.batch_size {settings.batch_size}; allowed are its "
                "divisors, so that each device has as many crops"
            )
        if settings.compile:
            yield f"compute.devices: found {devices} with {path}.compile true; allowed is 1, or compile false"


def _network_errors(path: str, key: str, arch: str, backbone: str | None, settings: TrainingParams) -> Iterator[str]:
    try:
        facts = arch_facts(arch)
    except UserError as error:
        yield f"{path}.{key}: {error}"
        return
    if settings.output_stride not in facts.output_strides:
        allowed = " or ".join(map(str, facts.output_strides))
        yield f"{path}.output_stride: found {settings.output_stride}; {arch} can be built at {allowed}"
    if settings.init == "imagenet" and not facts.has_imagenet_weights:
        yield f"{path}.init: found imagenet; there are no ImageNet weights for {arch}, allowed are random and a file"
    if takes_backbone(arch) and backbone is None:
        yield f"{path}.backbone: found null; {arch} needs a model of timm, such as tf_efficientnet_lite0"
    if not takes_backbone(arch) and backbone is not None:
        yield f"{path}.backbone: found {backbone!r}; {arch} has its own, so allowed is null"


def _warmup_error(path: str, warmup_steps: int, steps: int) -> Iterator[str]:
    if warmup_steps > steps:
        yield f"{path}.warmup_steps: found {warmup_steps}; at most the steps, {steps}"


def _weight_errors(path: str, section: RunBase | FinetuneParams) -> Iterator[str]:
    """Yield what is wrong with the weights of both losses; finetune may give none, which are the run's then."""
    given = {key: getattr(section, key) for key in WEIGHT_KEYS if getattr(section, key) is not None}
    allowed = [{"alpha"}, {"label_weight", "distill_weight"}]
    if isinstance(section, FinetuneParams):
        allowed.append(set())
    if given.keys() not in allowed:
        found = " and ".join(f"{key} {value}" for key, value in given.items()) or "no alpha"
        yield f"{path}: found {found}; allowed is alpha alone, or both label_weight and distill_weight"
    elif given.get("distill_weight") == 0 and given["label_weight"] != 1:
        yield (
            f"{path}.label_weight: found {given['label_weight']} with distill_weight 0; allowed is 1: the learning "
            "rate alone scales the steps"
        )


def _seed_errors(params: Params) -> Iterator[str]:
    if len(set(params.seeds)) < len(params.seeds):
        yield f"seeds: found {list(params.seeds)}; each seed at most once"
    for run in params.runs:
        # Also with the seed that the run has already: DVC has a stage for it.
        for name in (f"{run}-{seed}" for seed in params.seeds):
            if name in params.runs:
                yield f"runs.{name}: this name is taken, by the repetition of {shown(run)} that seeds asks for"
            elif len(name) > MAX_RUN_NAME:
                yield f"runs.{shown(run)[:MAX_SHOWN]}: with one of seeds behind it, more than {MAX_RUN_NAME} characters"
    limited = params.teacher_logits.limit_views_to is not None
    of_views = any(entry.teacher == "views" for entry in params.runs.values())
    if limited and of_views and set(params.seeds) - {params.seed}:
        yield (
            f"seeds: found {list(params.seeds)}; teacher_logits.limit_views_to stores only what seed {params.seed} "
            "draws, and null stores all views"
        )


def _run_errors(params: Params, name: str) -> Iterator[str]:
    path, run = f"runs.{shown(name)}", params.runs[name]
    if not RUN_NAME.fullmatch(name) or len(name) > MAX_RUN_NAME:
        allowed = f"up to {MAX_RUN_NAME} lower-case letters, digits and single dashes between them"
        yield f"{path[:MAX_SHOWN]}: a run is named by {allowed}"
    if name == "teacher":
        yield f"{path}: this name is taken, by the teacher's own row; any other will do"
    weights = [*_weight_errors(path, run)]
    if not weights:
        key = "distill_weight" if run.alpha is None else "alpha"
        if (getattr(run, key) == 0) != (run.teacher == "none"):
            found = f"{key} {getattr(run, key)} with teacher {run.teacher}"
            weights.append(f"{path}: found {found}; a control has {key} 0 and teacher none")
    if run.teacher != "none" and run.teacher not in params.teacher_logits.kinds:
        kinds = list(params.teacher_logits.kinds)
        yield f"{path}.teacher: found {run.teacher}; teacher_logits.kinds builds {kinds}"
    if run.feature_weight and (run.teacher != "views" or not params.teacher_logits.feature_channels):
        yield (
            f"{path}.feature_weight: found {run.feature_weight} with teacher {run.teacher} and "
            f"teacher_logits.feature_channels {params.teacher_logits.feature_channels}; features are stored of views, "
            "where feature_channels is not 0"
        )
    nested: list[str] = []
    _validated(FinetuneParams, params.finetune.model_dump() | run.finetune, f"{path}.finetune", nested)
    _validated(ExportParams, params.export.model_dump() | run.export, f"{path}.export", nested)
    yield from nested
    if not nested and run.teacher != "none":
        weights += _weight_errors(f"{path}.finetune", params.finetune_params(name))
    yield from weights
    stored = params.teacher_logits.limit_views_to
    # Of another kind, and without a limit, the logits of all views are stored.
    if not nested and not weights and stored is not None and run.teacher == "views":
        first, further = params.distill_settings(name), params.finetune_settings(name)
        steps = {"distill": first.steps, "finetune": further.steps if further.loss_weights.distill > 0 else 0}
        fits = all(steps[phase] <= most for phase, most in stored.steps.items())
        if not fits or (first.seed, first.batch_size) != (params.seed, stored.batch_size):
            yield (
                f"{path}: found {steps} steps with batches of {first.batch_size} and seed {first.seed}; "
                f"teacher_logits.limit_views_to stores what up to {stored.steps} with batches of {stored.batch_size} "
                f"and seed {params.seed} draw, and null stores all views"
            )
    for key in ("alpha", "distill_weight"):
        if run.finetune.get(key) and run.teacher == "none":
            yield f"{path}.finetune.{key}: found {run.finetune[key]}; a control has no teacher to learn from"
    settings = params.distill_settings(name)
    backbone = settings.backbone if takes_backbone(run.student) else run.model_dump()["backbone"]
    yield from _network_errors(path, "student", run.student, backbone, settings)
    if settings.distill_where != "all" and settings.method != "kl" and run.teacher != "none":
        yield (
            f"{path}.distill_where: found {settings.distill_where} with method {settings.method}, which compares no "
            "single pixels; allowed is all, or method kl"
        )
    yield from _warmup_error(path, settings.warmup_steps, settings.steps)
    if not nested and (finetune := params.finetune_params(name)).steps:
        yield from _warmup_error(f"{path}.finetune", finetune.warmup_steps, finetune.steps)


def known_run(params: Params, name: str) -> str:
    """Return `name`; raise a UserError when no student of params.yaml has that name."""
    if name not in params.students():
        raise UserError(f"runs: no run is named {name!r}; params.yaml has {', '.join(params.students())}")
    return name
