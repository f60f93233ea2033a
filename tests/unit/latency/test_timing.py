"""Interleaved timing: the order of calls, what is counted, and the spread between rounds."""

from __future__ import annotations

import numpy as np
import pytest

from segdistill.latency.engines import Engine
from segdistill.latency.run import time_engines
from segdistill.latency.timing import interleaved_ms, quantiles
from support.tiny_city import tinier_params


def test_each_call_runs_once_per_round_in_turn():
    log = []
    calls = {name: lambda number, name=name: log.append((name, number)) for name in "ab"}
    taken = interleaved_ms(calls, rounds=2, warmup=1)
    assert log == [("a", -1), ("b", -1), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert {name: ms.shape for name, ms in taken.items()} == {"a": (2,), "b": (2,)}


def test_quantiles_and_spread_counted_by_hand():
    found = quantiles(np.array([10.0, 20.0, 30.0, 40.0, 50.0]), "x")
    assert (found["x_p50_ms"], found["x_mean_ms"], found["x_iqr_ms"]) == (30, 30, 20)
    assert found["x_p95_ms"] == pytest.approx(48)
    assert found["x_p95_to_p50"] == pytest.approx(1.6)


def test_every_engine_runs_untimed_before_it_is_timed():
    log = []
    engines = {
        ("net", name): Engine(
            lambda _, name=name: log.append(f"{name} forward"),
            lambda _, name=name: log.append(f"{name} whole"),
            name,
            {"agreement_with_onnxruntime": 0.5} if name == "onnx" else {},
        )
        for name in ("torch", "onnx")
    }
    params = tinier_params(benchmark={"frames": 1, "warmup_frames": 1})
    rows = time_engines(engines, np.zeros((1, 2, 2, 3), np.uint8), params)
    one_round = [f"{name} {what}" for name in ("torch", "onnx") for what in ("whole", "forward", "whole")]
    assert log == 2 * one_round
    assert set(rows["net"]["onnx"]) >= {"forward_p50_ms", "end_to_end_p50_ms", "end_to_end_p95_to_p50"}
    assert not any("settle" in key for key in rows["net"]["onnx"])
    assert rows["net"]["onnx"]["agreement_with_onnxruntime"] == 0.5
    assert "agreement_with_onnxruntime" not in rows["net"]["torch"]
