"""Rounding of weights that keeps their sums.

Where each weight goes to the nearest step, the errors of a kernel add up. Their sum times the mean input moves the
output of every pixel alike, and more in brighter frames, so it does not average out as other errors do. So some weights
go the other way, until the errors add up to at most half a step in each output channel, and to one in each kernel
(SQuant, Guo et al., arXiv:2202.07471). That needs no images, and costs nothing at run time.

Shapes: O output channels, I input channels of a group, K weights of a kernel.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

MAX_WEIGHT = 64  # in steps: of weights of 7 bits, see `quantize`


def round_weights(graph: onnx.GraphProto, names: Collection[str], rounded: dict[str, onnx.TensorProto]) -> None:
    """Move the weights of the convolutions `names` to the steps of int8, in place; the quantiser leaves them there.

    Args:
        rounded: what earlier calls rounded of this network, by name of the convolution; gets what this one rounds.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Conv" and node.name in names and node.input[1] in constants:
            if node.name not in rounded:
                weights = numpy_helper.to_array(constants[node.input[1]])
                rounded[node.name] = numpy_helper.from_array(keep_sums(weights), f"{node.name}.rounded_weight")
            graph.initializer.append(rounded[node.name])
            node.input[1] = rounded[node.name].name
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def keep_sums(weights: np.ndarray) -> np.ndarray:
    """Return the weights rounded to one of the two steps around each, so that their errors add up to little.

    The scale is symmetric, one per output channel: the largest weight is MAX_WEIGHT steps, and stays.

    Args:
        weights: float32 (O, I, ...), of a convolution of any number of dimensions.
    """
    weights_OIK = weights.reshape(*weights.shape[:2], -1)
    largest_O11 = np.abs(weights_OIK).max(axis=(1, 2), keepdims=True)
    step_O11 = np.where(largest_O11 > 0, largest_O11, 1).astype(np.float64) / MAX_WEIGHT
    exact_OIK = weights_OIK / step_O11
    steps_OIK = np.round(exact_OIK)
    # A sum of errors takes as many weights the other way as it has whole steps: those with the largest errors of its
    # own sign, which gain the least error by it. First in each kernel, then one weight in some kernels of a channel.
    errors_OIK = steps_OIK - exact_OIK
    sums_OI1 = errors_OIK.sum(2, keepdims=True)
    sign_OI1 = np.sign(sums_OI1)
    steps_OIK -= sign_OI1 * _largest(errors_OIK * sign_OI1, np.abs(sums_OI1), axis=2)

    errors_OIK = steps_OIK - exact_OIK
    sums_OI1 = errors_OIK.sum(2, keepdims=True)
    sums_O11 = sums_OI1.sum(1, keepdims=True)
    sign_O11 = np.sign(sums_O11)
    kernels_OI1 = _largest(sums_OI1 * sign_O11, np.abs(sums_O11), axis=1)
    is_chosen_OIK = _largest(errors_OIK * sign_O11, np.ones_like(sums_OI1), axis=2)
    steps_OIK -= sign_O11 * (kernels_OI1 & is_chosen_OIK)
    return (steps_OIK * step_O11).reshape(weights.shape).astype(np.float32)


def _largest(values: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """Return which of `values` are the so many largest along an axis; `counts` are rounded."""
    ranks = values.argsort(axis, kind="stable").argsort(axis, kind="stable")
    return ranks >= values.shape[axis] - np.round(counts)
