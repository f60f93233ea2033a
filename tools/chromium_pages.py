"""A headless Chromium: open a page, click, tick, wait, take a screenshot."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LARGEST_BYTES = 400_000
LOCAL_SCHEMES, LOCAL_HOSTS = ("file", "data", "blob", "chrome"), ("127.0.0.1", "localhost")
# MLflow's pages request these, and only a server with accounts has them all.
MISSED = ("/favicon.ico ", "/mlflow/users/current ")
LAID_OUT_AGAIN = "ResizeObserver loop completed with undelivered notifications"  # harmless
PAGE_S, SETTLE_S = 90.0, 1.5
# MLflow's assistant would cover the page. Its state is in the browser's local storage.
STORED = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
# Its button and the toolbar of a hovered chart would cover the page too.
HIDDEN = "[data-assistant-ui], .modebar-container { visibility: hidden }"


@contextlib.contextmanager
def chromium(size_px: tuple[int, int], dark: bool = False) -> Iterator:
    """Start a headless browser with a page of (width, height) and a fresh profile, and quit it at the end.

    Raises:
        RuntimeError: a page logged an error to the console or requested something off this machine.
    """
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, CHROMIUM)), "")
    # Containers offer no sandbox, and the pages are local.
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
            # A headless window has a frame too, so set the size of the page.
            page = {"width": size_px[0], "height": size_px[1], "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", page)
            yield browser
            if found := complaints(browser):
                raise RuntimeError("\n".join(found))
        finally:
            browser.quit()


def complaints(browser) -> list[str]:
    """Return errors in the console and requests off this machine."""
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    errors = [message for message in errors if LAID_OUT_AGAIN not in message]
    found = [message for message in errors if not ("404" in message and any(path in message for path in MISSED))]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    for url in sorted(requested):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in LOCAL_SCHEMES and parts.hostname not in LOCAL_HOSTS:
            found.append(f"requested {url}")
    return found


def open_page(browser, url: str, wait_for: str = "") -> None:
    """Open `url`, wait until it shows the text `wait_for`, then let it settle."""
    if url.startswith("http"):
        browser.get(f"{url.partition('#')[0]}health")  # an empty page of the same origin
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
    """Return the visible text of the page."""
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
    """Move the first slider of the page, that of the images by step, to its end."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    slider = browser.find_element(By.CSS_SELECTOR, "[role=slider]")
    for _ in range(100):
        if slider.get_attribute("aria-valuenow") == slider.get_attribute("aria-valuemax"):
            break
        slider.send_keys(Keys.ARROW_RIGHT)  # from one image to the next
    time.sleep(SETTLE_S)


def wait_until(condition, what: str, limit_s: float = PAGE_S) -> None:
    """Wait for `condition` to hold.

    Raises:
        TimeoutError: it did not within `limit_s`; the message names `what`.
    """
    until = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.2)


def save(browser, out: Path) -> None:
    """Write what the window shows as a PNG of at most LARGEST_BYTES."""
    browser.save_screenshot(str(out))
    reduce(out)


def reduce(out: Path) -> None:
    """Write the PNG `out` again with fewer colours while it is larger than LARGEST_BYTES."""
    with Image.open(out) as image:
        whole = image.convert("RGB")
    for colours in (256, 64, 24):
        if out.stat().st_size <= LARGEST_BYTES:
            break
        whole.quantize(colours, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")
