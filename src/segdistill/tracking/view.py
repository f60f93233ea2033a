"""The views that MLflow's page offers under "Views": the columns a sweep is compared by, and the curves of its runs.

MLflow keeps a saved view as an experiment tag, so it is the same in every browser. The form of its value is that of
MLflow 3.17's page; another version that does not understand it leaves it out of the menu.
"""

from __future__ import annotations

import json

SWEEP, CURVES = "sweep", "curves"
CURRENT = "tags.`segdistill.current` = 'true'"
PARAMS = ("alpha", "lr", "temperature", "teacher", "student")
METRICS = (
    "mean_iou",
    "onnx_float32_mean_iou",
    "onnx_int8_mean_iou",
    "torch_p50_ms",
    "onnx_float32_p50_ms",
    "onnx_int8_p50_ms",
)


CHARTS = "^(loss|holdout_mean_iou|label_loss|distill_loss|lr)$"
WIDTHS = {"params.`student`": 210, "params.`temperature`": 100} | {f"metrics.`{name}`": 150 for name in METRICS}


def experiment_tags() -> dict[str, str]:
    """The tags that give an experiment its views, and spare its visitor the question of what kind it is."""
    # Sorted by a metric, MLflow lists runs flat; by anything else it folds the curves into their rows.
    sweep, curves = (f"{CURRENT} AND tags.`segdistill.{kind}` LIKE '%'" for kind in ("row", "curve"))
    return {
        f"mlflow.sharedViewState.{SWEEP}": _view("Sweep", sweep, "metrics.`mean_iou`"),
        f"mlflow.sharedViewState.{CURVES}": _view("Curves", curves, "metrics.`loss`", CHARTS),
        "mlflow.experimentKind": "custom_model_development",
    }


def view_path(experiment_id: str, view: str = SWEEP) -> str:
    """Where a view stands behind the address of an MLflow server."""
    chart = "&compareRunsMode=CHART" if view == CURVES else ""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={view}&workflowType=machine_learning{chart}"


def _view(name: str, search: str, order_by: str, charts: str = "") -> str:
    columns = [*(f"params.`{name}`" for name in PARAMS), *(f"metrics.`{name}`" for name in METRICS)]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": WIDTHS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "chartsSearchFilter": charts,
        "searchFilter": search,
        "orderByKey": order_by,
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "startTime": "ALL",
        "datasetsFilter": [],
    }
    return json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})
