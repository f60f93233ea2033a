"""Pictures of the pages that people look at, as a browser shows them.

    python docs/screenshots.py --all                    # all of docs/, from the finished run in the current folder
    python docs/screenshots.py URL OUT.png [--size 1600x900] [--dark] [--wait-for "text"] [--click "text"]

Needs Chromium with its driver (Debian: chromium chromium-driver) and the package selenium, which requirements.lock
installs and the extra `test` asks for. --all starts an MLflow server on 127.0.0.1 and stops it again. A page that
complains in the browser's console, or asks for anything off this machine, ends the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

DOCS = Path(__file__).resolve().parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LARGEST_BYTES = 400_000
LOCAL_SCHEMES, LOCAL_HOSTS = ("file", "data", "blob", "chrome"), ("127.0.0.1", "localhost")
# MLflow's pages ask for them, and only a server with accounts has them all.
MISSED = ("/favicon.ico ", "/mlflow/users/current ")
PAGE_S, SERVER_S, STOP_S, SETTLE_S = 90.0, 180.0, 10.0, 1.5
# MLflow's assistant would lie over the page; what its visitor has chosen stands in the browser's local storage.
STORED = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
# So would its button, and the tools of a chart that the mouse is thought to be over.
HIDDEN = "[data-assistant-ui], .modebar-container { visibility: hidden }"


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of web pages.")
    parser.add_argument("url", nargs="?", help="http://..., or file:///... for a page on disk")
    parser.add_argument("out", nargs="?", type=Path, help="PNG file")
    parser.add_argument("--all", action="store_true", help="take all pictures of docs/")
    parser.add_argument("--size", default="1600x900", help="of the window, WIDTHxHEIGHT in pixels")
    parser.add_argument("--dark", action="store_true", help="as a visitor who likes dark pages")
    parser.add_argument("--wait-for", default="", help="text that stands on the page when it is ready")
    parser.add_argument("--click", action="append", default=[], help="text of an element to click first; repeatable")
    arguments = parser.parse_args()
    if arguments.all:
        return take_all()
    if not arguments.out:
        parser.error("give URL and OUT.png, or --all")
    width, height = map(int, arguments.size.split("x"))
    with chromium((width, height), arguments.dark) as browser:
        open_page(browser, arguments.url, arguments.wait_for)
        for text in arguments.click:
            click(browser, text)
        save(browser, arguments.out)
    return None


def take_all() -> None:
    """The pictures that README.md and docs/ show."""
    from report_pictures import take_report  # which needs what stands here

    take_report((Path.cwd() / "reports" / "index.html").as_uri())
    with mlflow_pages() as pages:
        for name, size_px, page, text in (
            ("mlflow", (2340, 560), pages.sweep, "mean_iou"),
            ("mlflow-compare", (1800, 640), pages.trade_offs, "Parallel Coordinates"),
            ("mlflow-ticked", (1600, 900), pages.ticked, "Parallel Coordinates Plot"),
            ("mlflow-row", (1600, 760), pages.row, "Datasets"),
            ("mlflow-model", (1600, 640), pages.model, "champion"),
            ("mlflow-run", (1600, 1000), pages.curve, "predicted"),
        ):
            with chromium(size_px) as browser:
                open_page(browser, page, text)
                if page == pages.curve:
                    slide_to_end(browser)
                save(browser, DOCS / f"{name}.png")


@contextlib.contextmanager
def chromium(size_px: tuple[int, int], dark: bool = False) -> Iterator:
    """A headless browser with a page of (width, height) and a profile of its own; it is gone at the end.

    Raises:
        RuntimeError: at the end, where a page complained in the console or asked for something off this machine.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)), "")
    # Without a sandbox, as containers have none to offer; the pages are our own.
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    if dark:
        options.add_argument("--blink-settings=preferredColorScheme=0")
    options.add_argument(f"--window-size={size_px[0]},{size_px[1]}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            # The window has a frame, even where nobody sees it.
            page = {"width": size_px[0], "height": size_px[1], "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", page)
            yield browser
            if found := complaints(browser):
                raise RuntimeError("\n".join(found))
        finally:
            browser.quit()


def complaints(browser) -> list[str]:
    """What a page should not have done: errors in the console, and addresses off this machine that were asked for."""
    told = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    found = [message for message in told if not ("404" in message and any(path in message for path in MISSED))]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    for url in sorted(asked):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in LOCAL_SCHEMES and parts.hostname not in LOCAL_HOSTS:
            found.append(f"asked for {url}")
    return found


def open_page(browser, url: str, wait_for: str = "") -> None:
    """Open `url` and wait until the text `wait_for` stands on it and nothing moves any more."""
    if url.startswith("http"):
        browser.get(f"{url.partition('#')[0]}health")  # a page of that server that shows nothing
        browser.execute_script("localStorage.clear()")
        for key, value in STORED.items():
            browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", key, value)
    browser.get(url)
    if url.startswith("http"):
        hide = "document.head.append(Object.assign(document.createElement('style'), {textContent: arguments[0]}))"
        browser.execute_script(hide, HIDDEN)
    wait_until(lambda: wait_for in text_of(browser), f"{wait_for!r} on {url}")
    time.sleep(SETTLE_S)


def text_of(browser) -> str:
    """All text of the page that is shown."""
    return browser.execute_script("return document.body ? document.body.innerText : ''")


def click(browser, text: str) -> None:
    """Click the last element whose own text is `text`, once it is there."""
    from selenium.webdriver.common.by import By

    def found() -> list:
        return browser.find_elements(By.XPATH, f"//*[normalize-space(text())={text!r}]")

    wait_until(found, f"an element {text!r}")
    found()[-1].click()
    time.sleep(SETTLE_S)


def tick(browser, run: str) -> None:
    """Tick the row of `run` in MLflow's table of runs."""
    from selenium.webdriver.common.by import By

    row = f"//*[@role='row'][.//a[normalize-space()={run!r}]]"

    def found() -> list:
        return browser.find_elements(By.XPATH, f"{row}//input[contains(@class, 'ag-checkbox-input')]")

    wait_until(found, f"the row of {run}")
    browser.execute_script("arguments[0].click()", found()[0])


def slide_to_end(browser) -> None:
    """Move the first slider of the page, that of the pictures by step, to its end."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = browser.find_element(By.CSS_SELECTOR, "[role=slider]")
    for _ in range(100):
        if slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax"):
            break
        slider.send_keys(Keys.ARROW_RIGHT)  # from one picture to the next
    time.sleep(SETTLE_S)


def wait_until(condition, what: str, limit_s: float = PAGE_S) -> None:
    """Wait for `condition` to hold.

    Raises:
        TimeoutError: it did not within `limit_s`; the message names `what` was waited for.
    """
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.2)


def save(browser, out: Path) -> None:
    """Write what the window shows as a PNG of at most LARGEST_BYTES: with fewer colours where it needs that."""
    browser.save_screenshot(str(out))
    reduce(out, LARGEST_BYTES)


def reduce(out: Path, most_bytes: int) -> None:
    """Write the PNG `out` with fewer colours where it is larger than that."""
    with Image.open(out) as picture:
        whole = picture.convert("RGB")
    for colours in (256, 64, 24):
        if out.stat().st_size <= most_bytes:
            break
        whole.quantize(colours, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def served(command: list[str], ready_url: str) -> Iterator[None]:
    """Run a server until the body ends; every process of it is gone then, however the body ended.

    Raises:
        RuntimeError: it ended by itself.
        TimeoutError: it was not ready within SERVER_S.
    """
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)

    def ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)}: ended with {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(ready_url, timeout=5):
            return True
        return False

    try:
        wait_until(ready, ready_url, SERVER_S)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):  # whoever is left of its group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Pages(NamedTuple):
    """Addresses of MLflow's pages of a sweep: its table, its trade-offs, its students ticked and compared; the best
    student and its first training; the registered model."""

    sweep: str
    trade_offs: str
    ticked: str
    row: str
    curve: str
    model: str


@contextlib.contextmanager
def mlflow_pages() -> Iterator[Pages]:
    """The pages of the runs in the current folder, while a server shows them."""
    from segdistill.base.params_file import load_params
    from segdistill.tracking import Experiment
    from segdistill.tracking.store import find_store
    from segdistill.tracking.view import COMPARED, ML_PAGES, compare_path, run_path, view_path

    tracking = load_params().tracking
    experiment = Experiment(find_store(tracking.uri), tracking.experiment)
    rows, curves = experiment.current()
    students = [row for row in rows if "alpha" in row.data.params]
    best = max(students, key=lambda row: row.data.metrics.get("mean_iou", 0.0)).info
    (curve,) = (curve.info for curve in curves if curve.info.run_name == f"{best.run_name}/distill")
    paths = (
        view_path(experiment.id),
        view_path(experiment.id, COMPARED),
        compare_path(experiment.id, [row.info.run_id for row in students]),
        run_path(experiment.id, best.run_id),
        run_path(experiment.id, curve.run_id, charts=True),
        f"/#/models/{tracking.model}?{ML_PAGES}",
    )
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with served([sys.executable, "-m", "segdistill", "ui", "--port", str(port)], f"{base}/health"):
        yield Pages(*(base + path for path in paths))


if __name__ == "__main__":
    main()
