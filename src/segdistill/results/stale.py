"""Whether params.yaml still says what the figures under metrics/ were computed with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.formats.header import read_header
from segdistill.params.model import Params
from segdistill.results.summary import row_key


def changed_runs(params: Params, metrics: Path, runs: Iterable[str]) -> str | None:
    """A sentence that names those of `runs` whose settings are others than when their figures were computed.

    Two records tell: the headers of the weights in `models/runs` beside `metrics`, which are there when a sweep was
    ended before its report, and the summary of the last report, which covers the teacher and the export as well. None
    where all are the same, or where nothing can be told: without both, or without figures.
    """
    runs = [run for run in runs if run in params.runs and (metrics / "runs" / run / "finetune.json").is_file()]
    written = _summarised(metrics)
    differ = (_trained_otherwise(params, metrics, run) or _changed(params, metrics, run, written) for run in runs)
    changed = [run for run, differs in zip(runs, differ, strict=True) if differs]
    if not changed:
        return None
    named = ", ".join(changed)
    return f"params.yaml was changed since the figures of {named} were computed, with other settings; run: dvc repro"


def _summarised(metrics: Path) -> dict:
    try:
        return read_json(metrics / "summary.json")["runs"]
    except (OSError, ValueError, KeyError):
        return {}


def _changed(params: Params, metrics: Path, run: str, written: dict) -> bool:
    """Whether the summary has another key for `run`."""
    try:
        key = written[run]["row_key"]
        fingerprint = read_json(metrics / "runs" / run / "finetune.json")["data_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return key is not None and key != row_key(params, run, fingerprint)


def _trained_otherwise(params: Params, metrics: Path, run: str) -> bool:
    """Whether weights of `run` say of themselves that they were trained with other settings."""
    further = params.finetune_settings(run)
    for name, settings in (("distilled", params.distill_settings(run)), ("finetuned", further)):
        known = _settings_in(metrics.parent / "models" / "runs" / run / f"{name}.safetensors")
        # A key that an earlier version did not have says nothing.
        if any(known[key] != value for key, value in settings.model_dump(mode="json").items() if key in known):
            return True
    return False


def _settings_in(weights: Path) -> dict:
    """Return the settings in the header of a weights file; none where there is no such file."""
    try:
        return read_header(weights).params or {}
    except UserError:
        return {}
