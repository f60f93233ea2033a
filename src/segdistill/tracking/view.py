"""The views that MLflow's page offers under "Views": the columns a sweep is compared by, and the curves of its runs.

MLflow keeps a saved view as an experiment tag, so it is the same in every browser. The form of its value is that of
MLflow 3.17's page; another version that does not understand it leaves it out of the menu.
"""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from urllib.parse import quote

from segdistill.params.model import Params

SWEEP, COMPARED, CURVES = "sweep", "compared", "curves"
CURRENT = "tags.`segdistill.current` = 'true'"
PARAMS = ("alpha", "lr", "student")
METRICS = (  # what a choice is made by first: a laptop shows the first five or so without scrolling
    "mean_iou",
    "onnx_int8_mean_iou",
    "onnx_int8_p50_ms",
    "onnx_int8_mb",
    "distilled_mean_iou",
    "onnx_float32_mean_iou",
    "onnx_float32_p50_ms",
    "onnx_float32_mb",
    "torch_best_p50_ms",
    "torch_p50_ms",
)

CHARTS = "^(loss|holdout_mean_iou|label_loss|distill_loss|lr)$"
TRADE_OFFS = "trade-offs"
# Wide enough for the name, and so for its figures of six digits: the page cuts what does not fit.
WIDTHS = {"params.`alpha`": 70, "params.`lr`": 70, "params.`student`": 200}
WIDTHS |= {f"metrics.`{name}`": max(110, 28 + 7 * len(name)) for name in METRICS}
GOLDEN = (5**0.5 - 1) / 2
ML_PAGES = "workflowType=machine_learning"


def experiment_tags(experiment_id: str) -> dict[str, str]:
    """The tags that give an experiment its views and a note that leads to them, and say of what kind it is.

    Whoever comes by the address of the experiment alone has MLflow's own choice of columns before them, and in a new
    browser its pages for language models; no tag changes that.
    """
    named = {SWEEP: "the runs as a table", COMPARED: "compared", CURVES: "the curves of their trainings"}
    links = ", ".join(f"[{text}]({view_path(experiment_id, view)[1:]})" for view, text in named.items())
    # Sorted by a metric, MLflow lists runs flat; by anything else it folds the curves into their rows.
    sweep, curves = (f"{CURRENT} AND tags.`segdistill.{kind}` LIKE '%'" for kind in ("row", "curve"))
    return {
        f"mlflow.sharedViewState.{SWEEP}": _view("Sweep", sweep, "metrics.`mean_iou`"),
        f"mlflow.sharedViewState.{COMPARED}": _view("Compared", sweep, "metrics.`mean_iou`", trade_offs=True),
        f"mlflow.sharedViewState.{CURVES}": _view("Curves", curves, "metrics.`loss`", CHARTS),
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.note.content": f"Students distilled from one teacher: {links}; all under Views of the page of runs.",
    }


def run_colour(params: Params, run: str) -> str:
    """The colour of `run` in charts; the teacher is grey. MLflow's own are few, and two runs may share one."""
    if run not in params.runs:
        return "#707070"
    hue = list(params.runs).index(run) * GOLDEN % 1  # neighbours lie far apart, however many there are
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, 0.42, 0.75))


def lighter(colour: str) -> str:
    """`colour` half way to white."""
    return "#" + "".join(f"{(int(colour[place : place + 2], 16) + 255) // 2:02x}" for place in (1, 3, 5))


def view_path(experiment_id: str, view: str = SWEEP) -> str:
    """Where a view stands behind the address of an MLflow server."""
    chart = "" if view == SWEEP else "&compareRunsMode=CHART"
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={view}&{ML_PAGES}{chart}"


def compare_path(experiment_id: str, run_ids: Sequence[str]) -> str:
    """Where the given runs stand side by side."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id]))
    return f"/#/compare-runs?runs={runs}&experiments={experiments}&{ML_PAGES}"


def run_path(experiment_id: str, run_id: str, charts: bool = False) -> str:
    """Where one run stands; with `charts`, its charts."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}{'/model-metrics' * charts}?{ML_PAGES}"


def _view(name: str, search: str, order_by: str, charts: str = "", trade_offs: bool = False) -> str:
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
    if trade_offs:
        state |= {"compareRunCharts": _charts(), "compareRunSections": _sections()}
    return json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})


def _charts() -> list[dict]:
    """Alpha and learning rate against what comes of them, and accuracy against what it costs; the page names them."""
    parallel = {
        "type": "PARALLEL",
        "selectedParams": ["alpha", "lr"],
        "selectedMetrics": ["teacher_agreement", "mean_iou"],
        "showAllRuns": False,
    }
    pairs = [
        (("PARAM", "alpha"), ("METRIC", "mean_iou")),
        (("METRIC", "onnx_int8_p50_ms"), ("METRIC", "onnx_int8_mean_iou")),
    ]
    scatters = [{"type": "SCATTER", **_axes(*axes), "runsCountToCompare": 100} for axes in pairs]
    common = {"metricSectionId": TRADE_OFFS, "deleted": False, "isGenerated": False}
    return [chart | common | {"uuid": f"{TRADE_OFFS}-{number}"} for number, chart in enumerate([parallel, *scatters])]


def _axes(*axes: tuple[str, str]) -> dict[str, dict[str, str]]:
    return {name: {"type": kind, "key": key} for name, (kind, key) in zip(("xaxis", "yaxis"), axes, strict=True)}


def _sections() -> list[dict]:
    """Ours open, the one with a chart of each metric closed."""
    names = {TRADE_OFFS: ("Trade-offs", True), "all": ("Model metrics", False)}
    common = {"isReordered": False, "deleted": False, "isGenerated": False}
    return [{"uuid": key, "name": name, "display": shown} | common for key, (name, shown) in names.items()]
