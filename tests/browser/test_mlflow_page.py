"""MLflow's pages of a sweep in a browser: the table, the curves, runs side by side, one run with its images."""

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
NAMES = ("teacher", "vanilla", "a03", "light")
GROUPS = ("curve", "distilled", "onnx_float32", "onnx_int8", "torch", "torch_best", "val")
LAPTOP = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
# What MLflow's pages and a Chromium without a GPU log by themselves.
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
        images = METRICS / "runs/a03/distill_images"
        images.mkdir()
        for number, name in enumerate(("truth", "step_000000", "step_000005", "step_000010")):
            Image.fromarray(np.full((8, 16), number, np.uint8)).save(images / f"00001_{name}.png")
        assert track(params, METRICS)
        with screenshots.mlflow_pages() as found:
            yield found


@pytest.fixture
def page(pages, browser, page_logs):
    """Yield a wide window; after the test, the page must have logged no error and requested nothing from elsewhere."""
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", LAPTOP | {"width": 2340, "height": 900})
    browser.get("about:blank")  # end what the page of another test was still loading, which logs an error
    page_logs()
    yield browser
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", LAPTOP)
    console, requested = page_logs()
    here = pages.table.partition("#")[0]
    assert [line for line in console if not any(noise in line for noise in NOISE)] == []
    assert [url for url in requested if not url.startswith((here, "data:", "blob:"))] == []
    assert any(url.startswith(here) for url in requested)


def test_the_table_has_the_runs_by_accuracy_and_two_can_be_compared(browsing, pages, page):
    browsing.open_page(page, pages.table, "a03")
    names = [link.text for link in page.find_elements("css selector", "[role=row] a") if link.text in NAMES]
    assert names == ["teacher", "a03", "vanilla", "light"]
    for run in ("vanilla", "a03"):
        browsing.tick(page, run)
    browsing.click(page, "Compare")
    browsing.wait_until(lambda: "Comparing 2 Runs" in browsing.text_of(page), "the two runs side by side")


def test_the_side_by_side_page_has_all_settings_and_metrics(browsing, pages, page):
    browsing.open_page(page, pages.compared, "Comparing 3 Runs")
    shown = set(browsing.text_of(page).split())
    assert {"alpha", "lr", "val/mean_iou", "onnx_int8/mean_iou", "onnx_int8/p50_ms", "onnx_int8/mb"} <= shown
    assert {"vanilla", "a03", "light", "0.3", "0.53"} <= shown, "alpha and mIoU of a03 too"


def test_the_note_of_the_experiment_leads_to_its_curves(browsing, pages, page):
    browsing.open_page(page, pages.table.partition("?")[0], "Students distilled from one teacher")
    link = page.find_element("link text", "their curves")  # opens a tab of its own
    browsing.open_page(page, link.get_attribute("href"), "curve/holdout_mean_iou")  # an error where it does not appear
    assert "curve/holdout_mean_iou" in browsing.text_of(page)


def test_a_run_says_what_it_is_and_names_its_data(browsing, pages, page):
    browsing.open_page(page, pages.run, "Datasets")
    shown = browsing.text_of(page)
    assert "learns from deeplabv3plus_mobilenet" in shown
    assert "synthetic city" in shown


def test_a_run_begins_with_its_curves_and_images_to_slide_through(browsing, pages, page):
    browsing.open_page(page, pages.run_curves, "predicted and truth")
    sections = [line for line in browsing.text_of(page).splitlines() if line in GROUPS]
    assert sections[0] == "curve"
    shown = browsing.text_of(page)
    assert {"loss", "holdout_mean_iou", "Step"} <= set(shown.split())
    assert "No image logged at this step" not in shown
    slider = page.find_element("css selector", "[role=slider]")
    assert slider.get_attribute("aria-valuemax") == "10"
    browsing.slide_to_end(page)
    assert slider.get_attribute("aria-valuenow") == "10"
