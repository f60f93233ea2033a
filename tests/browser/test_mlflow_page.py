"""MLflow's page of a sweep in a browser: the table, two runs side by side, a curve with its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.core.files import write_text
from segdistill.tracking.mlflow import track
from support.fake_metrics import sweep_params, write_metrics
from support.scripts_as_modules import load_script

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
METRICS = Path("metrics")
LAPTOP = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
# What MLflow's pages say by themselves: they ask for the user of a server without users, and call their table the old
# way, and lay their charts out in more than one go; and what a Chromium without a GPU says of the charts.
NOISE = (
    "/ajax-api/2.0/mlflow/users/current - Failed to load resource: the server responded with a status of 404",
    "/favicon.ico - Failed to load resource: the server responded with a status of 404",
    "AG Grid: since v27.1, ",
    "GL Driver Message (OpenGL, Performance, ",
    "Automatic fallback to software WebGL has been deprecated",
    "ResizeObserver loop completed with undelivered notifications",
)


@pytest.fixture(scope="module")
def browsing():
    return load_script(ROOT / "tools" / "chromium_pages.py")


@pytest.fixture(scope="module")
def screenshots(browsing):
    return load_script(ROOT / "tools" / "screenshots.py")  # which imports the other one


@pytest.fixture(scope="module")
def pages(screenshots, browser, tmp_path_factory):
    """The pages of a tracked sweep, served; a machine without a browser starts no server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("sweep"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        params = sweep_params(tracking={"model": None})
        write_text("params.yaml", yaml.safe_dump(json.loads(params.model_dump_json())))
        write_metrics(METRICS)
        pictures = METRICS / "runs/a03/distill_images"
        pictures.mkdir()
        for number, name in enumerate(("truth", "step_000000", "step_000005", "step_000010")):
            Image.fromarray(np.full((8, 16), number, np.uint8)).save(pictures / f"00001_{name}.png")
        assert track(params, METRICS)
        with screenshots.mlflow_pages() as found:
            yield found


@pytest.fixture
def page(pages, browser, told):
    """A wide window; when a test is through with it, nothing of ours was complained of or asked for outside."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", LAPTOP | {"width": 2340, "height": 900})
    browser.get("about:blank")  # what the page of another test was still loading ends here, with a complaint
    told()
    yield browser
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", LAPTOP)
    console, asked = told()
    here = pages.sweep.partition("#")[0]
    assert [line for line in console if not any(noise in line for noise in NOISE)] == []
    assert [url for url in asked if not url.startswith((here, "data:", "blob:"))] == []
    assert any(url.startswith(here) for url in asked)


def test_two_runs_are_ticked_and_compared(browsing, pages, page):
    browsing.open_page(page, pages.sweep, "a03")
    shown = browsing.text_of(page)
    for column in ("alpha", "lr", "student", "mean_iou", "onnx_int8_mean_iou", "torch_p50_ms", "onnx_int8_mb"):
        assert column in shown
    for run in ("vanilla", "a03"):
        browsing.tick(page, run)
    browsing.click(page, "Compare")
    browsing.wait_until(lambda: "Comparing 2 Runs" in browsing.text_of(page), "the two runs side by side")
    shown = set(browsing.text_of(page).split())
    assert {"alpha", "mean_iou", "vanilla", "a03"} <= shown
    assert {"0.3", "0.53"} <= shown, "alpha and mIoU of a03"


def test_whoever_opens_the_experiment_is_led_to_the_table(browsing, pages, page):
    browsing.open_page(page, pages.sweep.partition("?")[0], "Students distilled from one teacher")
    assert "onnx_int8_mean_iou" not in browsing.text_of(page)
    link = page.find_element("link text", "the runs as a table")  # opens a tab of its own
    browsing.open_page(page, link.get_attribute("href"), "onnx_int8_mean_iou")


def test_a_run_says_what_it_is_and_names_its_data(browsing, pages, page):
    browsing.open_page(page, pages.row, "Datasets")
    shown = browsing.text_of(page)
    assert "learns from deeplabv3plus_mobilenet" in shown
    assert "synthetic city" in shown


def test_the_trade_offs_are_drawn(browsing, pages, page):
    browsing.open_page(page, pages.trade_offs, "Parallel Coordinates")
    shown = browsing.text_of(page)
    assert "Trade-offs" in shown
    assert "alpha vs. mean_iou" in shown


def test_a_training_has_curves_over_steps_and_pictures_to_slide_through(browsing, pages, page):
    browsing.open_page(page, pages.curve, "holdout frame 1 predicted")
    shown = browsing.text_of(page)
    assert {"loss", "holdout_mean_iou", "Step"} <= set(shown.split())
    assert "No image logged at this step" not in shown
    slider = page.find_element("css selector", "[role=slider]")
    assert slider.get_attribute("aria-valuemax") == "10"
    browsing.slide_to_end(page)
    assert slider.get_attribute("aria-valuenow") == "10"
