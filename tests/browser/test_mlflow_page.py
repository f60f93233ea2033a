"""MLflow's page of a sweep in a browser: the table, two runs side by side, a curve with its pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from fake_metrics import sweep_params, write_metrics
from scripts_as_modules import load_script
from segdistill.base.files import write_text
from segdistill.tracking import track

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
METRICS = Path("metrics")


@pytest.fixture(scope="module")
def screenshots():
    pytest.importorskip("selenium", reason="the browser tests need the package selenium")
    module = load_script(ROOT / "docs" / "screenshots.py")
    if not Path(module.DRIVER).exists() or shutil.which("chromium") is None:
        pytest.skip("Chromium and its driver are not installed (Debian: chromium chromium-driver)")
    return module


@pytest.fixture(scope="module")
def sweep(screenshots, tmp_path_factory):
    """A tracked sweep, served; and a browser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        params = sweep_params(tracking={"model": None})
        write_text("params.yaml", yaml.safe_dump(json.loads(params.model_dump_json())))
        write_metrics(METRICS)
        pictures = METRICS / "runs/a03/distill_pictures"
        pictures.mkdir()
        for number, name in enumerate(("truth", "step_000000", "step_000005", "step_000010")):
            Image.fromarray(np.full((8, 16), number, np.uint8)).save(pictures / f"00001_{name}.png")
        assert track(params, METRICS)
        with screenshots.mlflow_pages() as pages, screenshots.chromium((2340, 900)) as browser:
            yield pages, browser


def test_two_runs_are_ticked_and_compared(screenshots, sweep):
    pages, browser = sweep
    screenshots.open_page(browser, pages.sweep, "a03")
    shown = screenshots.text_of(browser)
    for column in ("alpha", "lr", "student", "mean_iou", "onnx_int8_mean_iou", "torch_p50_ms", "onnx_int8_mb"):
        assert column in shown
    for run in ("vanilla", "a03"):
        screenshots.tick(browser, run)
    screenshots.click(browser, "Compare")
    screenshots.wait_until(lambda: "Comparing 2 Runs" in screenshots.text_of(browser), "the two runs side by side")
    shown = set(screenshots.text_of(browser).split())
    assert {"alpha", "mean_iou", "vanilla", "a03"} <= shown
    assert {"0.3", "0.53"} <= shown, "alpha and mIoU of a03"


def test_the_trade_offs_are_drawn(screenshots, sweep):
    pages, browser = sweep
    screenshots.open_page(browser, pages.trade_offs, "Parallel Coordinates")
    shown = screenshots.text_of(browser)
    assert "Trade-offs" in shown
    assert "alpha vs. mean_iou" in shown


def test_a_training_has_curves_over_steps_and_pictures_to_slide_through(screenshots, sweep):
    pages, browser = sweep
    screenshots.open_page(browser, pages.curve, "holdout frame 1 predicted")
    shown = screenshots.text_of(browser)
    assert {"loss", "holdout_mean_iou", "Step"} <= set(shown.split())
    assert "No image logged at this step" not in shown
    slider = browser.find_element("css selector", "[role=slider]")
    assert slider.get_attribute("aria-valuemax") == "10"
    screenshots.slide_to_end(browser)
    assert slider.get_attribute("aria-valuenow") == "10"
