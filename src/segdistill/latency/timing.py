"""Interleaved timing: each call runs once per round, after a warm-up, so ratios hold on a shared machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np

# Sleep before each call, to let the threads of the call before become idle; `latency.run` has measurements.
REST_S = 0.002
Name = TypeVar("Name", bound=Hashable)


def interleaved_ms(
    calls: Mapping[Name, Callable[[int], object]],
    rounds: int,
    warmup: int,
    after_round: Callable[[], object] = lambda: None,
) -> dict[Name, np.ndarray]:
    """Return the milliseconds of each call in each counted round, float64 (rounds,) by name.

    In every round each call runs once, in turn, with the number of the round as its argument. Other load on the machine
    slows all of them, so their ratios hold. A call must return only when its result is ready. `after_round` runs after
    each round, also of the warm-up, and its time does not count.
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
    """Return p50, p95, mean and spread of timings in milliseconds, as {prefix}_p50_ms and so on.

    The spread between rounds is the interquartile range in milliseconds and the ratio of p95 to p50.
    """
    p50, p95 = np.quantile(taken_ms, 0.5), np.quantile(taken_ms, 0.95)
    return {
        f"{prefix}_p50_ms": float(p50),
        f"{prefix}_p95_ms": float(p95),
        f"{prefix}_mean_ms": float(taken_ms.mean()),
        f"{prefix}_iqr_ms": float(np.quantile(taken_ms, 0.75) - np.quantile(taken_ms, 0.25)),
        f"{prefix}_p95_to_p50": float(p95 / p50),
    }
