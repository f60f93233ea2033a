"""Whether params.yaml still says what the figures under metrics/ were computed with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from segdistill.base.files import read_json
from segdistill.base.params import Params
from segdistill.summary import row_key


def changed_runs(params: Params, metrics: Path, runs: Iterable[str]) -> str | None:
    """A sentence that names those of `runs` whose settings are others than when the last report was written.

    None where all are the same, or where nothing can be told: without a summary, or without figures.
    """
    try:
        written = read_json(metrics / "summary.json")["runs"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    changed = [run for run in runs if run in params.runs and _changed(params, metrics, run, written)]
    if not changed:
        return None
    named = ", ".join(changed)
    return f"params.yaml was changed since the figures of {named} were computed, with other settings; run: dvc repro"


def _changed(params: Params, metrics: Path, run: str, written: dict) -> bool:
    try:
        key = written[run]["row_key"]
        fingerprint = read_json(metrics / "runs" / run / "finetune.json")["data_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return key is not None and key != row_key(params, run, fingerprint)
