"""Addresses of MLflow's pages of a sweep, the note on the experiment, and colours of runs.

Only query parameters of MLflow's addresses are used. They say which runs a table holds and how it is sorted; which
columns it has is kept by each browser.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from segdistill.params.model import Params

CURRENT_TAG = "segdistill.current"
GOLDEN = (5**0.5 - 1) / 2
# Without it a new browser shows the pages for language models.
_PAGES = {"workflowType": "machine_learning"}


def table_path(experiment_id: str, charts: bool = False) -> str:
    """Return where an MLflow server shows the runs that params.yaml names, the most accurate first."""
    query = {
        "searchFilter": f"tags.`{CURRENT_TAG}` = 'true'",
        "orderByKey": "metrics.`val/mean_iou`",
        "orderByAsc": "false",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
    }
    query |= {"compareRunsMode": "CHART"} if charts else {}
    return f"/#/experiments/{experiment_id}/runs?{urlencode(query | _PAGES, quote_via=quote)}"


def compare_path(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Return where an MLflow server shows the given runs side by side."""
    runs, experiments = (json.dumps(ids, separators=(",", ":")) for ids in (list(run_ids), [experiment_id]))
    query = {"runs": runs, "experiments": experiments} | _PAGES
    return f"/#/compare-runs?{urlencode(query, quote_via=quote)}"


def run_path(experiment_id: str, run_id: str, charts: bool = False) -> str:
    """Return where an MLflow server shows one run; with `charts`, its curves and images."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}{'/model-metrics' * charts}?{urlencode(_PAGES)}"


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """Return the tags that give an experiment its kind, and a note with links to its pages."""
    pages = {
        "the runs as a table": table_path(experiment_id),
        "their curves": table_path(experiment_id, charts=True),
    }
    links = ", ".join(f"[{text}]({path[1:]})" for text, path in pages.items())
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Students distilled from one teacher: {links}.",
    }


def run_colour(params: Params, run: str) -> str:
    """Return the colour of `run` in charts; the teacher is grey. MLflow's own are few, and two runs may share one."""
    students = params.students()
    if run not in students:
        return "#707070"
    hue = students.index(run) * GOLDEN % 1  # neighbours differ clearly, however many there are
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.42, 0.75))
