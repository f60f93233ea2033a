"""Show how far a stage is: a bar with steps per second and time left, or plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from segdistill.core.log import logger

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A rich bar where stderr is a terminal; elsewhere (CI, a log file) a plain line every 15 s and at the end.

    With `timing` only `advance` draws the bar, so that no other thread runs while the caller times its own work.
    """

    def __init__(
        self,
        name: str,
        total: int,
        first: int = 0,
        unit: str = "step",
        timing: bool = False,
    ) -> None:
        self.name, self.total, self.first, self.done, self.unit = name, total, first, first, unit
        self.timing, self._note = timing, ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        self.started_s = self._logged_s = time.monotonic()
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            self._bar = _bar(in_background=not self.timing)
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.first, note="", rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._log()

    def advance(self, count: int = 1) -> None:
        """Count `count` more steps as done."""
        self.done += count
        if self._bar:
            rate = f"{self.per_s:.1f} {self.unit}s/s"
            self._bar.update(self._task, completed=self.done, rate=rate, refresh=self.timing)
        elif time.monotonic() - self._logged_s > SECONDS_BETWEEN_LINES:
            self._log()

    def show(self, note: str) -> None:
        """Show `note`, such as the current loss, from now on."""
        self._note = note
        if self._bar:
            self._bar.update(self._task, note=note)

    @property
    def per_s(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.started_s, 1e-9)

    def _log(self) -> None:
        self._logged_s = time.monotonic()
        rate = ""
        if self.done > self.first:  # else the rate is unknown
            rate = f", {self.per_s:.1f} {self.unit}s/s, {(self.total - self.done) / self.per_s:.0f} s left"
        note = f", {self._note}" if self._note else ""
        logger.info("%s: %s %d/%d%s%s", self.name, self.unit, self.done, self.total, note, rate)


def _bar(in_background: bool):
    from rich import progress as rich_progress
    from rich.console import Console

    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[note]} {task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=in_background,
    )
