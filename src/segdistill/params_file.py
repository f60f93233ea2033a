"""The one reader of params.yaml: parses it, checks it whole, and reports all faults together by their params path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from segdistill.archs import ARCHS
from segdistill.errors import InputError, raise_together
from segdistill.params import ExportParams, FinetuneParams, Params, RunParams, Section

RUN_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-4 is a number, and a key that stands twice is a fault, not an overwrite."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)|[-+]?(\d+\.\d*|\.\d+)|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
    list("-+0123456789."),
)


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str | int | float):  # a date, a list, nothing
            raise InputError(f"{node.start_mark.name}: key {key} is no name (line {node.start_mark.line + 1} on)")
        if keys.count(key) > 1:
            raise InputError(f"{node.start_mark.name}: key {key!r} stands twice (line {node.start_mark.line + 1} on)")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_duplicates)


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check `path`.

    Raises:
        InputError: the file is missing or no YAML mapping, or any value is not allowed; all faults in one message.
    """
    raw = _read(Path(path))
    faults: list[str] = []
    params = _validated(Params, raw, "", faults)
    if params is not None:
        faults += _cross_faults(params)
    raise_together(faults, f"{path} has values that are not allowed")
    return params


def _read(path: Path) -> dict:
    try:
        with path.open(encoding="utf-8") as stream:
            raw = yaml.load(stream, Loader=_Loader)  # noqa: S506 - a SafeLoader with two rules more
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; take one with: cp profiles/tiny.yaml params.yaml") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}, allowed is a mapping of sections")
    return raw


def _validated(model: type[BaseModel], raw: dict, prefix: str, faults: list[str]) -> Any:
    # Through JSON, because pydantic's strict mode takes a list for a tuple only there.
    try:
        return model.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as error:
        faults += [_worded(model, prefix, fault) for fault in error.errors()]
        return None


def _worded(model: type[BaseModel], prefix: str, fault: dict) -> str:
    path = ".".join([*filter(None, [prefix]), *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown key; allowed: {', '.join(_keys_beside(model, fault['loc']))}"
    if fault["type"] == "missing":
        return f"{path}: missing"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{path}: found {json.dumps(fault['input'], default=str)}; {message}"


def _keys_beside(model: type[BaseModel], location: tuple) -> list[str]:
    here: type[BaseModel] = model
    for part in location[:-1]:
        field = here.model_fields.get(part) if isinstance(part, str) else None
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            here = field.annotation
        elif here is Params or part not in here.model_fields:
            here = RunParams
    return sorted(here.model_fields)


def _cross_faults(params: Params) -> Iterator[str]:
    yield from _data_faults(params)
    for section in ("teacher", "distill"):
        arch = params.teacher.arch if section == "teacher" else params.distill.student
        yield from _stride_fault(section, arch, getattr(params, section).output_stride)
    if params.distill.student and not any(run.teacher == "none" for run in params.runs.values()):
        yield "runs: no control; allowed is a sweep with at least one run of alpha 0 and teacher none"
    for name in params.runs:
        yield from _run_faults(params, name)


def _data_faults(params: Params) -> Iterator[str]:
    size_px, stride = params.data.size_px, params.teacher_logits.stride
    if params.data.source == "synthetic" and size_px is None:
        yield "data.size_px: found null; the synthetic city needs [height, width]"
    for section in ("teacher", "distill"):
        crop_px = getattr(params, section).crop_px
        if size_px is not None and (crop_px[0] > size_px[0] or crop_px[1] > size_px[1]):
            yield f"{section}.crop_px: found {list(crop_px)}; at most the frame, data.size_px {list(size_px)}"
    crop_px = params.distill.crop_px
    if any(side % stride for side in crop_px):
        nearest = [max(stride, round(side / stride) * stride) for side in crop_px]
        yield f"distill.crop_px: found {list(crop_px)}; multiples of teacher_logits.stride {stride}, such as {nearest}"
    if len(set(params.teacher_logits.kinds)) < len(params.teacher_logits.kinds):
        yield f"teacher_logits.kinds: found {list(params.teacher_logits.kinds)}; each kind at most once"


def _stride_fault(path: str, arch: str, output_stride: int) -> Iterator[str]:
    if output_stride not in ARCHS[arch].output_strides:
        allowed = " or ".join(map(str, ARCHS[arch].output_strides))
        yield f"{path}.output_stride: found {output_stride}; {arch} can be built at {allowed}"


def _run_faults(params: Params, name: str) -> Iterator[str]:
    path, run = f"runs.{name}", params.runs[name]
    if not RUN_NAME.fullmatch(name):
        yield f"{path}: a run is named by lower-case letters, digits and single dashes between them"
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
    if run.finetune.get("alpha") and run.teacher == "none":
        yield f"{path}.finetune.alpha: found {run.finetune['alpha']}; a control has no teacher to learn from"
    if run.student or run.output_stride:  # else the fault is the section's, and told there
        settings = params.distill_settings(name)
        yield from _stride_fault(path, settings.student, settings.output_stride)


def known_run(params: Params, name: str) -> str:
    """`name`, when params.yaml has a run of that name.

    Raises:
        InputError: it has none.
    """
    if name not in params.runs:
        raise InputError(f"runs: no run is named {name!r}; params.yaml has {', '.join(params.runs)}")
    return name
