"""A headless Chromium, and what people do in it: open a page, click, tick, wait, take a picture."""

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
# MLflow's pages ask for them, and only a server with accounts has them all.
MISSED = ("/favicon.ico ", "/mlflow/users/current ")
LAID_OUT_AGAIN = "ResizeObserver loop completed with undelivered notifications"  # and no fault of a page
PAGE_S, SETTLE_S = 90.0, 1.5
# MLflow's assistant would lie over the page; what its visitor has chosen stands in the browser's local storage.
STORED = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true", "mlflow.assistant.panelOpen_v1": "false"}
# So would its button, and the tools of a chart that the mouse is thought to be over.
HIDDEN = "[data-assistant-ui], .modebar-container { visibility: hidden }"


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
    told = [message for message in told if LAID_OUT_AGAIN not in message]
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
