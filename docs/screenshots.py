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

from chromium_pages import chromium, click, open_page, save, slide_to_end, wait_until

DOCS = Path(__file__).resolve().parent
SERVER_S, STOP_S = 180.0, 10.0


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
            ("mlflow", (2340, 660), pages.sweep, "mean_iou"),
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
    from segdistill.params.read import load_params
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
