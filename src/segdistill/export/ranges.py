"""Ranges of activations that are narrower than from minimum to maximum: a rare large value costs all others precision.

One pass over the calibration frames fills a histogram per activation; every search reads the same histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segdistill.export.quantize import Ranges
from segdistill.nets.onnx_session import INPUT, open_session

BINS, LEVELS = 2048, 255
SAMPLED = 7  # every so many values: an activation of a whole frame may be 100 MB, and a net has a hundred of them
CUTS = 32  # candidates for each end of a range


class Histogram(NamedTuple):
    """How often the values of one activation occur: `counts` (BINS,) at `centres` (BINS,), evenly from low to high."""

    counts: np.ndarray
    centres: np.ndarray
    low: float
    high: float


def histograms(model: onnx.ModelProto, ranges: Ranges, images: np.ndarray, threads: int) -> dict[str, Histogram]:
    """Return the histogram of every activation in `ranges`, its values over `images` uint8 (N, H, W, 3) sampled."""
    sampling, names = onnx.ModelProto(), [name for name, (low, high) in ranges.items() if low < high]
    sampling.CopyFrom(model)
    constants = {"flat": [-1], "first": [0], "last": [np.iinfo(np.int64).max], "axis": [0], "step": [SAMPLED]}
    for name, value in constants.items():
        sampling.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), f"sampling_{name}"))
    limits = [f"sampling_{name}" for name in ("first", "last", "axis", "step")]
    del sampling.graph.output[:]
    for number, name in enumerate(names):
        flat, sampled = f"sampling_flat_{number}", f"sampling_{number}"
        sampling.graph.node.append(helper.make_node("Reshape", [name, "sampling_flat"], [flat]))
        sampling.graph.node.append(helper.make_node("Slice", [flat, *limits], [sampled]))
        sampling.graph.output.append(helper.make_tensor_value_info(sampled, TensorProto.FLOAT, [None]))
    session = open_session(sampling.SerializeToString(), threads)
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for image in images:
        for name, values in zip(names, session.run(None, {INPUT: np.array(image)[None]}), strict=True):
            counts[name] += np.histogram(values, BINS, ranges[name])[0]
    centres = (np.arange(BINS) + 0.5) / BINS
    return {
        name: Histogram(counts[name], low + (high - low) * centres, low, high)
        for name, (low, high) in ranges.items()
        if name in counts
    }


def least_squares(histogram: Histogram) -> tuple[float, float]:
    """Return the range with the smallest mean squared error of clipping and of rounding to LEVELS steps."""
    counts, centres, low, high = histogram
    shares = np.arange(1, CUTS + 1) / CUTS
    # Quantised ranges hold zero, which has no rounding error: after a ReLU half of the values are zeros.
    highs = max(high, 0.0) * shares if high > 0 else np.zeros(1)
    lows = min(low, 0.0) * shares if low < 0 else np.zeros(1)
    above = (centres - highs[:, None]).clip(min=0) ** 2 @ counts
    below = (lows[:, None] - centres).clip(min=0) ** 2 @ counts
    width = (high - low) / BINS
    rounded = counts[np.abs(centres) > width].sum()
    steps = (highs - lows[:, None]) / LEVELS
    error = above + below[:, None] + rounded * steps**2 / 12
    best_low, best_high = np.unravel_index(error.argmin(), error.shape)
    return float(lows[best_low]), float(highs[best_high])


def percentile(kept: float) -> Callable[[Histogram], tuple[float, float]]:
    """Return a search for the range that clips a share of (1 - kept) / 2 of the values at each end."""

    def search(histogram: Histogram) -> tuple[float, float]:
        shares = np.cumsum(histogram.counts) / max(1, histogram.counts.sum())
        low = histogram.centres[np.searchsorted(shares, (1 - kept) / 2)]
        high = histogram.centres[np.searchsorted(shares, (1 + kept) / 2)]
        return min(float(low), 0.0), max(float(high), 0.0)

    return search


SEARCHES: Mapping[str, Callable[[Histogram], tuple[float, float]]] = {
    "least squares": least_squares,
    "percentile 99.99": percentile(0.9999),
    "percentile 99.9": percentile(0.999),
}


def searched(name: str, ranges: Ranges, found: Mapping[str, Histogram]) -> Ranges:
    """Return `ranges`, with those of the search called `name` where there are histograms."""
    return ranges | {tensor: SEARCHES[name](histogram) for tensor, histogram in found.items()}
