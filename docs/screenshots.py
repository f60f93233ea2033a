"""Take a picture of a web page as a browser shows it: the MLflow table, a run, the report.

    python docs/screenshots.py URL OUT.png [--size 1600x900] [--wait-s 8] [--click "visible text"] [--stored KEY=VALUE]

Needs Chromium with its driver (Debian: chromium chromium-driver) and the package selenium, which the project does not
install. A page's local storage holds what its visitor has chosen; MLflow's assistant stays closed with
--stored mlflow.assistant.fab.autoOpenedOnFirstLoad_v1=true --stored mlflow.assistant.panelOpen_v1=false.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a web page.")
    parser.add_argument("url", help="http://..., or file:///... for a page on disk")
    parser.add_argument("out", type=Path, help="PNG file")
    parser.add_argument("--size", default="1600x900", help="of the window, WIDTHxHEIGHT in pixels")
    parser.add_argument("--wait-s", type=float, default=8.0, help="for the page, and again after the clicks")
    parser.add_argument("--click", action="append", default=[], help="text of an element to click first; repeatable")
    parser.add_argument("--stored", action="append", default=[], help="KEY=VALUE of local storage; repeatable")
    arguments = parser.parse_args()
    width, height = arguments.size.split("x")
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        # Without a sandbox, as containers have none to offer; the pages are our own.
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
            options.add_argument(flag)
        options.add_argument(f"--window-size={width},{height}")
        options.add_argument(f"--user-data-dir={profile}")
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
        try:
            take(browser, arguments)
        finally:
            browser.quit()


def take(browser: webdriver.Chrome, arguments: argparse.Namespace) -> None:
    """Open the page, click through it, and write the picture."""
    browser.get(arguments.url)
    for pair in arguments.stored:
        browser.execute_script("localStorage.setItem(arguments[0], arguments[1])", *pair.split("=", 1))
    if arguments.stored:
        browser.refresh()
    time.sleep(arguments.wait_s)
    for text in arguments.click:
        (*_, element) = browser.find_elements(By.XPATH, f"//*[normalize-space(text())={text!r}]")
        element.click()
        time.sleep(arguments.wait_s / 2)
    browser.save_screenshot(str(arguments.out))


if __name__ == "__main__":
    main()
