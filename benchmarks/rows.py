"""Rows of the tables, and the timing of several kinds of work in turn in one process."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """A row of the table. `spread`: 10th and 90th percentile over the rounds; `note`: why a target is missed."""

    row: str
    what: str
    value: float
    target: str | None
    unit: str
    spread: tuple[float, float] | None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Return whether `value` meets its target "at most X" or "at least X"; None without a target."""
        if self.target is None:
            return None
        word, bound = self.target.removeprefix("at ").split()
        return self.value <= float(bound) if word == "most" else self.value >= float(bound)


def seconds_in_turn(kinds: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, np.ndarray]:
    """Return the seconds of each kind of work in each counted round, float64 (rounds,).

    In every round each kind runs once. The order rotates from round to round, so that a slow spell of the machine, or
    the first call after a rest, hits all kinds alike.
    """
    names = list(kinds)
    taken_s = {name: np.empty(rounds) for name in names}
    for number in range(-warmup, rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            gc.collect()
            started = time.perf_counter()
            kinds[name]()
            if number >= 0:
                taken_s[name][number] = time.perf_counter() - started
    return taken_s


def ratio_row(row: str, what: str, ratios: np.ndarray, target: str | None = None, note: str = "") -> Row:
    """Return the row of the median of per-round ratios, with their 10th and 90th percentile."""
    low, high = (round(float(np.quantile(ratios, q)), 3) for q in (0.1, 0.9))
    return Row(row, what, round(float(np.median(ratios)), 3), target, "ratio", (low, high), note)
