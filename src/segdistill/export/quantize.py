"""Static int8 quantisation of a traced net: unsigned activations, signed weights with a scale per output channel.

That is what x86 multiplies in one instruction, and what onnxruntime fuses into integer operators.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx

from segdistill.core.files import name_path_in_errors

QUANTISED = ("Conv", "Add", "Concat", "MaxPool", "GlobalAveragePool", "Relu", "Clip", "Resize", "MatMul", "Gemm")
# Bilinear weights at integer factors are multiples of 1/8 or 1/4, and 1/248 divides both: no rounding.
WEIGHTS_SCALE = 1 / 248


def quantised(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """An int8 model from a float32 one, its ranges calibrated on `images`, one at a time.

    Args:
        model: from uint8 frames, its only input, to logits, which stay float32.
        images: uint8 (N, H, W, 3).
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    place = Path(tempfile.gettempdir())  # the quantiser works from file to file
    with name_path_in_errors(place), tempfile.TemporaryDirectory(dir=place) as folder, _quiet("root"):
        files = [str(Path(folder) / name) for name in ("traced.onnx", "simplified.onnx", "quantised.onnx")]
        onnx.save(model, files[0])
        quant_pre_process(files[0], files[1], skip_symbolic_shape=True)
        simplified = onnx.load(files[1])
        quantize_static(
            files[1],
            files[2],
            _CalibrationReader(model.graph.input[0].name, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTISED,
            nodes_to_exclude=_kept_float(simplified.graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm"],  # the logits: argmax wants all of their precision
                "TensorQuantOverrides": _known_scales(simplified.graph),
            },
        )
        result = onnx.load(files[2])
    _read_bytes_directly(result.graph)
    _read_sizes_directly(result.graph)
    return result


class _CalibrationReader:
    def __init__(self, name: str, images: np.ndarray) -> None:
        self._name, self._images = name, iter(images)

    def get_next(self) -> dict | None:
        image = next(self._images, None)
        return None if image is None else {self._name: np.array(image)[None]}


class _quiet:  # noqa: N801 - a context manager
    """Keep a logger from telling what it tells about every model."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)


def _kept_float(graph: onnx.GraphProto) -> list[str]:
    """Nodes that are no arithmetic of the net (normalisation, and what follows from sizes alone), and its last one.

    Calibrated positions would be wrong at any other size.
    """
    of_frames = {graph.input[0].name}
    for node in graph.node:
        if node.op_type != "Shape" and of_frames & set(node.input):
            of_frames |= set(node.output)
    from_sizes = [node.name for node in graph.node if not of_frames & set(node.output)]
    return from_sizes + [node.name for node in [*normalising(graph), *_giving_quantised_logits(graph)]]


def _giving_quantised_logits(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The node that gives the logits, unless it is a Gemm, whose output stays float32 anyway.

    Argmax wants all of their precision, and onnxruntime 1.31 aborts when it moves a Dequantize into the branches of
    `onnx_classes`.
    """
    producers = {name: node for node in graph.node for name in node.output}
    last = producers[graph.output[0].name]
    while last.op_type in {"Reshape", "Transpose"}:
        last = producers[last.input[0]]
    return [] if last.op_type == "Gemm" else [last]


def normalising(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The chain of operators that turns bytes into normalised pixels, in order; none where the first layer does it."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    chain: list[onnx.NodeProto] = []
    name = graph.input[0].name
    while True:
        following = [node for node in readers[name] if node.op_type in {"Transpose", "Cast", "Mul", "Add"}]
        if not following:
            return chain
        chain.append(following[0])
        name = following[0].output[0]


def _known_scales(graph: onnx.GraphProto) -> dict[str, list[dict]]:
    """Scales that need no calibration: of bytes, and of the weights of upsampling, which come first in a product."""
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
    scales = {node.input[0]: WEIGHTS_SCALE for node in products}
    scales |= {cast.output[0]: 1.0 for cast in _casts_of_bytes(graph)}
    return {
        name: [{"scale": np.array(scale, np.float32), "zero_point": np.array(0, np.uint8)}]
        for name, scale in scales.items()
    }


def _casts_of_bytes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Where bytes that are not normalised become floats."""
    if normalising(graph):
        return []
    of_bytes = {graph.input[0].name}
    for node in graph.node:
        if node.op_type in {"Pad", "Reshape", "Transpose"} and node.input[0] in of_bytes:
            of_bytes.add(node.output[0])
    return [node for node in graph.node if node.op_type == "Cast" and node.input[0] in of_bytes]


def _read_bytes_directly(graph: onnx.GraphProto) -> None:
    """Take out the casts of bytes to floats that are quantised to the same bytes again, in place."""
    for cast in _casts_of_bytes(graph):
        for quantise in [node for node in graph.node if node.input[0] == cast.output[0]]:
            for node in graph.node:
                if quantise.output[0] in node.input:
                    node.input[0] = cast.input[0]
            graph.node.remove(quantise)
        graph.node.remove(cast)


def _read_sizes_directly(graph: onnx.GraphProto) -> None:
    """Let Shape read the quantised tensor, in place: else onnxruntime makes floats of all of it to see how many."""
    quantised_of = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        if node.op_type == "Shape":
            node.input[0] = quantised_of.get(node.input[0], node.input[0])
