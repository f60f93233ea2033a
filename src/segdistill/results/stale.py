"""Whether params.yaml and the data are still what the metrics under metrics/ were computed with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.formats.header import read_header
from segdistill.params.model import Params
from segdistill.paths import TEACHER_WEIGHTS
from segdistill.results.row import OPTIONAL, SETTINGS, TEACHER, row_key

FIRST_MEMBER = "0.safetensors"  # in models/teacher, of a teacher that is more than one torch network


def changed_runs(params: Params, metrics: Path, runs: Iterable[str]) -> str | None:
    """Return a sentence that names those of `runs` whose settings were changed since their metrics were computed.

    One of `runs` may be the teacher. Return None where all are the same or where no record tells.
    """
    known = (TEACHER, *params.students())
    return stale_sentence([run for run in runs if run in known and computed_with(params, metrics, run)])


def stale_sentence(runs: list[str]) -> str | None:
    """Return the sentence on these runs; None for no run."""
    if not runs:
        return None
    return f"params.yaml or the data was changed since the metrics of {', '.join(runs)} were computed; run: dvc repro"


def computed_with(params: Params, metrics: Path, run: str) -> dict[str, Any]:
    """Return the settings that the metrics of `run` were computed with if params.yaml has others, else nothing.

    They are named as in params.yaml, with `finetune_steps` for the further steps. They are returned, too, where the
    metrics are of other data than those of the teacher.
    Two records tell: the headers of the weights in `models/runs` next to `metrics`, which are there when a sweep ended
    before its report, and the summary of the last report, which covers the teacher and the export too.
    Of the teacher itself its weights in `models/teacher` tell.
    """
    if run == TEACHER:
        return _teacher_computed_with(params, metrics)
    folder, models = metrics / "runs" / run, metrics.parent / "models" / "runs" / run
    if not (folder / "finetune.json").is_file():
        return {}
    now, further = params.distill_settings(run), params.finetune_settings(run)
    distilled, finetuned = (_settings_in(models / f"{phase}.safetensors") for phase in ("distilled", "finetuned"))
    if _differs(distilled, now.model_dump(mode="json")) or _differs(finetuned, further.model_dump(mode="json")):
        steps = finetuned.get("steps", further.steps)
        return now.model_dump(mode="json") | distilled | {"finetune_steps": steps}
    fingerprint = _fingerprint(folder / "finetune.json")
    # The teacher comes first. While a sweep of other data runs, the metrics of the last one are still there.
    before = [_fingerprint(path) for path in (metrics / "teacher.json", folder / "distill.json")]
    if fingerprint and any(other not in ("", fingerprint) for other in before):
        return now.model_dump(mode="json") | {"finetune_steps": further.steps}
    try:
        written = read_json(metrics / "summary.json")["runs"][run]
        if not fingerprint or written["row_key"] in (None, row_key(params, run, fingerprint)):
            return {}
        # An optional setting is not in the summary of a run that does not have it.
        written = dict.fromkeys(OPTIONAL) | written
        columns = {name: written[name] for name in SETTINGS} | {"teacher": written["teacher"] or "none"}
        return columns | {"student": columns.pop("arch")}
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return {}


def _teacher_computed_with(params: Params, metrics: Path) -> dict[str, Any]:
    folder = metrics.parent / "models" / "teacher"
    weights = next((file for file in (folder / TEACHER_WEIGHTS, folder / FIRST_MEMBER) if file.is_file()), None)
    try:
        header = None if weights is None else read_header(weights)
    except UserError:
        header = None
    if header is None or header.params is None:  # a given ONNX file has no header
        return {}
    is_other_seed = not params.teacher.checkpoints and header.seed != params.seed
    if is_other_seed or _differs(header.params, params.teacher.model_dump(mode="json")):
        return header.params | {"seed": header.seed}
    return {}


def _fingerprint(path: Path) -> str:
    """Return that of the data in a metrics file; "" where none tells."""
    try:
        return str(read_json(path).get("data_fingerprint", ""))
    except (OSError, UserError):
        return ""


def _differs(known: dict, now: dict) -> bool:
    """Return whether settings in a header are others; a key that an earlier version did not have says nothing."""
    return any(known[key] != value for key, value in now.items() if key in known)


def _settings_in(weights: Path) -> dict:
    """Return the settings in the header of a weights file; none where there is no such file."""
    try:
        return read_header(weights).params or {}
    except UserError:
        return {}
