"""Timing that can be trusted on a shared machine: all of it warm, all of it interleaved, quantiles beside means."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

# Thread pools go on spinning for a moment after a call; without a rest they would slow whatever is timed next.
REST_S = 0.002


def interleaved_ms(
    calls: dict[str, Callable[[int], object]],
    rounds: int,
    warmup: int,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, np.ndarray]:
    """Milliseconds of each call in each counted round, float64 (rounds,) by name.

    In every round each call runs once, in turn, and is given the number of the round; whatever slows the machine for a
    while slows all of them, so that ratios hold. A call returns only when its result is there (it synchronises itself).
    `after_round` is called between the rounds, those of the warm-up too, and not timed.
    """
    taken_ms = {name: np.empty(rounds) for name in calls}
    for number in range(-warmup, rounds):
        for name, call in calls.items():
            time.sleep(REST_S)
            started_ns = time.perf_counter_ns()
            call(number)
            if number >= 0:
                taken_ms[name][number] = (time.perf_counter_ns() - started_ns) / 1e6
        after_round()
    return taken_ms


def quantiles(taken_ms: np.ndarray, prefix: str) -> dict[str, float]:
    """p50, p95 and mean of timings in milliseconds, as {prefix}_p50_ms and so on."""
    return {
        f"{prefix}_p50_ms": float(np.quantile(taken_ms, 0.5)),
        f"{prefix}_p95_ms": float(np.quantile(taken_ms, 0.95)),
        f"{prefix}_mean_ms": float(taken_ms.mean()),
    }
