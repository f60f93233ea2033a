"""Screenshots of the report and of MLflow, as a browser shows them.

    python tools/screenshots.py --all                    # all of docs/, from the finished run in the current folder
    python tools/screenshots.py URL OUT.png [--size 1600x900] [--dark] [--wait-for "text"] [--click "text"]

Needs Chromium with its driver (Debian: chromium chromium-driver). --all starts an MLflow server on 127.0.0.1 and stops
it again. The script fails when a page logs an error to the browser's console, or requests anything off this machine.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from chromium_pages import chromium, click, open_page, reduce, save, slide_to_end, wait_until
from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
ABOVE_PX = 20  # of a heading
SERVER_S, STOP_S = 180.0, 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Take screenshots of web pages.")
    parser.add_argument("url", nargs="?", help="http://..., or file:///... for a page on disk")
    parser.add_argument("out", nargs="?", type=Path, help="PNG file")
    parser.add_argument("--all", action="store_true", help="take all screenshots of docs/")
    parser.add_argument("--size", default="1600x900", help="of the window, WIDTHxHEIGHT in pixels")
    parser.add_argument("--dark", action="store_true", help="prefer a dark colour scheme")
    parser.add_argument("--wait-for", default="", help="text that the page shows when it is ready")
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
    """Take the screenshots that README.md and docs/ show."""
    take_report((Path.cwd() / "reports" / "index.html").as_uri(), DOCS)
    with mlflow_pages() as pages:
        for name, size_px, page, text in (
            ("mlflow", (1600, 1100), pages.curves, "predicted"),
            ("mlflow-run", (1600, 980), pages.run_curves, "predicted"),
        ):
            with chromium(size_px) as browser:
                open_page(browser, page, text)
                if page == pages.run_curves:
                    slide_to_end(browser)
                save(browser, DOCS / f"{name}.png")


def take_report(url: str, folder: Path) -> None:
    """Take the top of the report, and its settings over seeds with the first frame below them."""
    with chromium((1280, 900)) as browser:
        open_page(browser, url)
        for name, parts in (
            ("report", [("html", "#training")]),
            ("report-frames", [("#settings", "#latency"), ("#images", "h3:nth-of-type(2)")]),
        ):
            shown = [image_of(browser, first, until) for first, until in parts]
            joined = Image.new("RGB", (shown[0].width, sum(image.height for image in shown)))
            top_px = 0
            for image in shown:
                joined.paste(image, (0, top_px))
                top_px += image.height
            joined.save(folder / f"{name}.png", optimize=True)
            reduce(folder / f"{name}.png")


def image_of(browser, first: str, until: str) -> Image.Image:
    """Return the page from above the element `first` to above `until`, both CSS selectors, as wide as the window."""
    edge = "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY"
    top, bottom = (max(0, browser.execute_script(edge, selector) - ABOVE_PX) for selector in (first, until))
    width = browser.execute_script("return window.innerWidth")
    clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
    taken = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
    with Image.open(io.BytesIO(base64.b64decode(taken["data"]))) as image:
        return image.convert("RGB")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextlib.contextmanager
def served(command: list[str], ready_url: str) -> Iterator[None]:
    """Run a server while the body runs, and end all its processes after it.

    Raises:
        RuntimeError: the server ended by itself.
        TimeoutError: the server was not ready within SERVER_S.
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
        with contextlib.suppress(ProcessLookupError):  # children that outlived the server
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Pages(NamedTuple):
    """Addresses of MLflow's pages of a sweep: its runs as a table and as curves, side by side, and the best student."""

    table: str
    curves: str
    compared: str
    run: str
    run_curves: str


@contextlib.contextmanager
def mlflow_pages() -> Iterator[Pages]:
    """Serve MLflow with the runs of the current folder, and yield the addresses of their pages."""
    from segdistill.params.read import load_params
    from segdistill.tracking.mlflow import open_experiment
    from segdistill.tracking.store import find_store
    from segdistill.tracking.view import compare_path, run_path, table_path

    tracking = load_params().tracking
    experiment = open_experiment(find_store(tracking.uri), tracking.experiment)
    students = [run for run in experiment.current() if "student" in run.data.params]
    best = max(students, key=lambda run: run.data.metrics.get("val/mean_iou", 0.0)).info.run_id
    paths = (
        table_path(experiment.id),
        table_path(experiment.id, charts=True),
        compare_path(experiment.id, [run.info.run_id for run in students]),
        run_path(experiment.id, best),
        run_path(experiment.id, best, charts=True),
    )
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with served([sys.executable, "-m", "segdistill", "ui", "--port", str(port)], f"{base}/health"):
        yield Pages(*(base + path for path in paths))


if __name__ == "__main__":
    main()
