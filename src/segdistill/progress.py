"""What a person sees of a training: a bar with steps/s and time left, and its curve growing in a file."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from segdistill.base.files import atomic_file, named_in_faults

SECONDS_BETWEEN_LINES = 15.0


class CurveFile:
    """A growing CSV file, for whoever follows a training live; every row is on disk at once."""

    def __init__(self, path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
        self.path, self.columns = path, columns
        # Written anew on a resume: the killed process may have been ahead of its last checkpoint.
        write_curve(path, columns, rows)

    def append(self, row: dict) -> None:
        with named_in_faults(self.path), self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, self.columns).writerow(row)


def write_curve(path: Path, columns: Sequence[str], rows: Sequence[dict]) -> None:
    """Write a curve as CSV; None is an empty cell."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


class Progress:
    """A rich bar where stderr is a terminal; elsewhere (CI, a log file) a plain line every 15 s and at the end.

    With `timing` only `advance` draws the bar, so that nothing runs beside what is timed between two calls of it.
    """

    def __init__(
        self,
        name: str,
        total: int,
        first: int = 0,
        unit: str = "step",
        curve_file: CurveFile | None = None,
        timing: bool = False,
    ) -> None:
        self.name, self.total, self.first, self.done, self.unit = name, total, first, first, unit
        self.curve_file, self.timing = curve_file, timing
        self._bar = self._task = None

    def __enter__(self) -> Progress:
        self.started_s = self._told_s = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _bar(in_background=not self.timing)
            self._task = self._bar.add_task(self.name, total=self.total, completed=self.first, loss="", rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._tell()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar:
            rate = f"{self.per_s:.1f} {self.unit}s/s"
            self._bar.update(self._task, completed=self.done, rate=rate, refresh=self.timing)
        elif time.monotonic() - self._told_s > SECONDS_BETWEEN_LINES:
            self._tell()

    def point(self, row: dict) -> None:
        """A point of the curve."""
        if self.curve_file:
            self.curve_file.append(row)
        if self._bar:
            self._bar.update(self._task, loss=f"loss {row['loss']:.3f}")

    @property
    def per_s(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.started_s, 1e-9)

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        rate = ""
        if self.done > self.first:  # else nothing is known of its pace
            rate = f", {self.per_s:.1f} {self.unit}s/s, {(self.total - self.done) / self.per_s:.0f} s left"
        print(f"{self.name}: {self.unit} {self.done}/{self.total}{rate}", file=sys.stderr)


def _bar(in_background: bool):
    from rich import progress as rich_progress
    from rich.console import Console

    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn("{task.fields[loss]} {task.fields[rate]}"),
        rich_progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=in_background,
    )
