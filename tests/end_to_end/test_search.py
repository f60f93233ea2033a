"""`segdistill search` on the tiny city: `dvc repro` trains no trial again, and the report has a row for each."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml

from segdistill.formats.curve import read_curve
from segdistill.params.stages import OF_A_RUN
from support.checkout import Checkout

pytest.importorskip("optuna", reason="the extra search is not installed")
pytestmark = pytest.mark.slow

SEARCH = (sys.executable, "-m", "segdistill", "search", "--trials", "2", "--jobs", "2", "--name", "quick")
SPACE = ("alpha=0.2:0.8", "lr=0.001:0.1:log", "finetune.steps=2")
TRIALS = ["quick-000", "quick-001"]


def test_search_on_the_tiny_city_is_scored_on_the_holdout_and_repeated_by_repro(tmp_path):
    checkout = Checkout(tmp_path, preloaded=True)
    light = checkout.params["runs"]["light"]
    control = light | {"alpha": 0.0, "teacher": "none"}
    checkout.params["runs"] = {"vanilla": control, "light": light}
    checkout.params["distill"] |= {"evaluate_every_steps": 0}
    checkout.params["finetune"] |= {"steps": 0}
    checkout.params["export"] |= {"max_int8_loss": None}
    checkout.save_params()
    comment = "# at the end\n"
    with (checkout.folder / "params.yaml").open("a") as params:
        params.write(comment)

    done = checkout.call(*SEARCH, *SPACE)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (checkout.folder / "params.yaml").read_text()
    assert text.endswith(comment)
    runs = yaml.safe_load(text)["runs"]
    assert list(runs) == ["vanilla", "light", *TRIALS]
    shown = dict(re.findall(r"^finished (quick-\d+) after \d+ s \(\d of 2\): holdout mIoU (\S+%)$", done.stdout, re.M))
    for run in TRIALS:
        own = {"alpha": runs[run]["alpha"], "lr": runs[run]["lr"], "finetune": {"steps": 2}, "evaluate_every_steps": 3}
        assert runs[run] == light | own
        last = read_curve(checkout.folder / f"metrics/runs/{run}/finetune_curve.csv")[-1]
        assert (last["step"], f"{last['holdout_mean_iou']:.2%}") == (2, shown[run])
        distilled = read_curve(checkout.folder / f"metrics/runs/{run}/distill_curve.csv")[-1]["holdout_mean_iou"]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{run} ")]
        assert line.split()[1:3] == [shown[run], f"{distilled:.2%}"]
        val = json.loads((checkout.folder / f"metrics/runs/{run}/finetune.json").read_text())["mean_iou"]
        assert val != last["holdout_mean_iou"]  # val is for the report

    others = [f"{stage}@{run}" for run in ("vanilla", "light") for stage in OF_A_RUN]
    assert sorted(checkout.dvc("repro")) == sorted([*others, "benchmark", "report"])
    assert checkout.metrics("summary.json")["runs"].keys() == runs.keys()
    again = checkout.call(*SEARCH, *SPACE)
    assert "started" not in again.stdout and "2 trials (2 finished)" in again.stdout
