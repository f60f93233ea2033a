"""Tiny ONNX models as others export them: one convolution from three planes to logits, a cell for every 4x4 pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CELL_PX = 4
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def weights(classes: int, seed: int = 0) -> np.ndarray:
    """Return weights float32 (C, 3, 4, 4)."""
    return np.random.default_rng(seed).normal(0, 0.2, (classes, 3, CELL_PX, CELL_PX)).astype(np.float32)


def cell_logits(pixels_BHW3: np.ndarray, weights_C344: np.ndarray) -> np.ndarray:
    """Return the logits (B, C, H / 4, W / 4) that the model gives, by plain sums in float64."""
    batch, height, width, _ = pixels_BHW3.shape
    cells = pixels_BHW3.astype(np.float64).reshape(batch, height // CELL_PX, CELL_PX, width // CELL_PX, CELL_PX, 3)
    return np.einsum("bhywxc,kcyx->bkhw", cells, weights_C344.astype(np.float64))


def model(
    weights_C344: np.ndarray,
    shape: tuple = ("n", 3, "h", "w"),
    dtype: str = "float32",
    outputs: tuple[str, ...] = ("out",),
    kind: str = "logits",
) -> onnx.ModelProto:
    """Return the model with an input `x` of `shape`; further outputs are planes of the input, before the last one.

    `kind` "classes" gives the class of each cell instead of logits, "probabilities" their softmax.
    """
    nodes, planes = [], "x"
    if shape[3] == 3:
        nodes.append(helper.make_node("Transpose", [planes], ["planes"], perm=[0, 3, 1, 2]))
        planes = "planes"
    nodes.append(helper.make_node("Cast", [planes], ["floats"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Conv", ["floats", "weights"], ["cells"], strides=[CELL_PX, CELL_PX]))
    if kind == "classes":
        nodes.append(helper.make_node("ArgMax", ["cells"], [outputs[-1]], axis=1, keepdims=0))
        last = helper.make_tensor_value_info(outputs[-1], TensorProto.INT64, None)
    else:
        axis = {"axis": 1} if kind == "probabilities" else {}
        nodes.append(helper.make_node("Softmax" if axis else "Identity", ["cells"], [outputs[-1]], **axis))
        described = (shape[0], len(weights_C344), None, None)
        last = helper.make_tensor_value_info(outputs[-1], TensorProto.FLOAT, described)
    infos = []
    for name in outputs[:-1]:
        nodes.append(helper.make_node("Identity", ["floats"], [name]))
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (shape[0], 3, None, None)))
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("x", TYPES[dtype], shape)],
        [*infos, last],
        [numpy_helper.from_array(weights_C344, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_model(path: Path, *arguments: object, **options: object) -> Path:
    """Save `model(...)` as `path`."""
    onnx.save(model(*arguments, **options), path)
    return path
