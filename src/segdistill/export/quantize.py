"""Static int8 quantisation of a traced network: unsigned activations, signed weights with a scale per output channel.

x86 multiplies unsigned by signed bytes in one instruction, and onnxruntime fuses such operators into integer ones.

Weights have 7 bits, -64 to 64. x86 processors without VNNI add two products of a pair in 16 bits, which saturate at
32767; 255 * (64 + 64) fits. With 8 bits (255 * 254) a trained student named another class there on 12% of the pixels.
onnxruntime's session option x64quantprecision avoids that too, but every server and C++ program would have to set it.
With 7 bits the student names the same classes on both, in the same time. Where weights went to the nearest step, more
pixels changed class against float32 in return: 2.8 instead of 2.7% for that student, 2.9 instead of 2.2 and 14.2
instead of 12.5 for two others. `rounding` makes up for that.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from segdistill.core.files import name_path_in_errors
from segdistill.export.rounding import round_weights

QUANTISED = ("Conv", "Add", "Concat", "MaxPool", "GlobalAveragePool", "Relu", "Clip", "Resize", "MatMul", "Gemm")
# Bilinear weights at integer factors are multiples of 1/8 or 1/4, and 1/248 divides both: no rounding.
WEIGHTS_SCALE = 1 / 248
FUSED = ("Relu", "Clip")  # the quantiser removes them: the range of their output clips as they do
Ranges = dict[str, tuple[float, float]]  # lowest and highest value by tensor
Layer = tuple[str, ...]  # the names of its nodes


class Quantizer:
    """Quantise one float32 model once or several times, with ranges of its activations from frames.

    Attributes:
        model: the float32 model before it is quantised: constants folded, shapes inferred.
        ranges: (lowest, highest) of each activation over all frames of `calibrate`, by tensor.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Prepare a model that reads uint8 frames, its only input, and returns logits, which stay float32."""
        from onnxruntime.quantization import create_calibrator
        from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
        from onnxruntime.quantization.shape_inference import quant_pre_process

        place = Path(tempfile.gettempdir())  # onnxruntime reads and writes files
        with name_path_in_errors(place), tempfile.TemporaryDirectory(dir=place) as folder, _without_advice():
            traced, simplified, observed = (
                Path(folder) / f"{name}.onnx" for name in ("traced", "simplified", "observed")
            )
            onnx.save(model, traced)
            quant_pre_process(str(traced), str(simplified), skip_symbolic_shape=True)
            self.model = load_model_with_shape_infer(simplified)
            self._calibrator = create_calibrator(simplified, QUANTISED, augmented_model_path=str(observed))
        self.ranges: Ranges = {}
        self._rounded: dict[str, onnx.TensorProto] = {}

    def calibrate(self, images: np.ndarray) -> None:
        """Widen the ranges to those of `images` uint8 (N, H, W, 3), run one at a time."""
        self._calibrator.collect_data(_CalibrationReader(self.model.graph.input[0].name, images))
        found = self._calibrator.compute_data()
        self.ranges = {name: (found[name].lowest.item(), found[name].highest.item()) for name in found}

    def layers(self) -> list[Layer]:
        """Return the nodes that are quantised, layer by layer: each with the activation that is fused into it."""
        kept = set(_kept_float(self.model.graph))
        nodes = [node for node in self.model.graph.node if node.op_type in QUANTISED and node.name not in kept]
        activations = {node.input[0]: node.name for node in nodes if node.op_type in FUSED}
        fused = set(activations.values())
        return [
            (node.name, *(activations[output] for output in node.output if output in activations))
            for node in nodes
            if node.name not in fused
        ]

    def quantised(
        self, ranges: Ranges | None = None, float_nodes: Iterable[str] = (), only: Iterable[str] = ()
    ) -> onnx.ModelProto:
        """Return the model in int8.

        Args:
            ranges: of activations; those of `calibrate` by default.
            float_nodes: names of nodes to keep in float32.
            only: names of the nodes to quantise; all by default.
        """
        from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

        ends = {name: np.array(pair, np.float32) for name, pair in (ranges or self.ranges).items()}
        pairs = {name: (pair[:1], pair[1:]) for name, pair in ends.items()}
        excluded = {*_kept_float(self.model.graph), *float_nodes}
        only = list(only)
        model = copy.deepcopy(self.model)
        names = only or [node.name for node in model.graph.node]
        round_weights(model.graph, set(names) - excluded, self._rounded)
        with _without_advice():
            quantizer = QDQQuantizer(
                model,
                per_channel=True,
                reduce_range=True,  # weights of 7 bits
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=TensorsData(CalibrationMethod.MinMax, pairs),
                nodes_to_quantize=only,
                nodes_to_exclude=sorted(excluded),
                op_types_to_quantize=QUANTISED,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["Gemm"],  # the logits: argmax needs their full precision
                    "TensorQuantOverrides": _known_scales(self.model.graph),
                },
            )
            quantizer.quantize_model()
            _keep_float_weights(quantizer.model.model.graph)
            quantizer.model.topological_sort()
        result = quantizer.model.model
        _read_bytes_directly(result.graph)
        # Let Shape read the quantised tensor; otherwise onnxruntime dequantises all of it to get its size.
        quantised_of = {
            node.output[0]: node.input[0] for node in result.graph.node if node.op_type == "DequantizeLinear"
        }
        for node in result.graph.node:
            if node.op_type == "Shape":
                node.input[0] = quantised_of.get(node.input[0], node.input[0])
        return result


class _CalibrationReader:
    """Feed images to onnxruntime's calibration, through the one method that it calls."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._name, self._images = name, iter(images)

    def get_next(self) -> dict | None:
        image = next(self._images, None)
        return None if image is None else {self._name: np.array(image)[None]}


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence the advice that onnxruntime logs about every model, to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _kept_float(graph: onnx.GraphProto) -> list[str]:
    """Return the names of nodes to keep in float32: normalisation, positions, sums of products, and the last layer."""
    # Nodes that read only sizes compute positions; ranges calibrated at one size would be wrong at any other.
    of_frames = {graph.input[0].name}
    for node in graph.node:
        if node.op_type != "Shape" and of_frames & set(node.input):
            of_frames |= set(node.output)
    from_sizes = [node.name for node in graph.node if not of_frames & set(node.output)]
    # The node that computes the logits: argmax needs their full precision, and onnxruntime 1.31 aborts when it moves a
    # Dequantize into the branches that `add_classes` adds. The output of a Gemm stays float32 anyway.
    producers = {name: node for node in graph.node for name in node.output}
    last = producers[graph.output[0].name]
    while last.op_type in {"Reshape", "Transpose"}:
        last = producers[last.input[0]]
    last_layer = [] if last.op_type == "Gemm" else [last]
    # A sum of products, which stay float32: rounding them first adds their error to that of the sum.
    products = {name for name, node in producers.items() if node.op_type == "Mul"}
    sums = [node for node in graph.node if node.op_type == "Add" and products & set(node.input)]
    return from_sizes + [node.name for node in [*normalizing_nodes(graph), *sums, *last_layer]]


def normalizing_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that normalise the pixels, in order; none where the first layer does it."""
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
    """Return known scales, by tensor: those of bytes, and of upsampling weights (the first factor of a product)."""
    constants = {tensor.name for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
    scales = {node.input[0]: WEIGHTS_SCALE for node in products}
    scales |= {cast.output[0]: 1.0 for cast in _casts_of_bytes(graph)}
    return {
        name: [{"scale": np.array(scale, np.float32), "zero_point": np.array(0, np.uint8)}]
        for name, scale in scales.items()
    }


def _casts_of_bytes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the Cast nodes that turn bytes into floats where the first layer normalises; none elsewhere."""
    if normalizing_nodes(graph):
        return []
    of_bytes = {graph.input[0].name}
    for node in graph.node:
        if node.op_type in {"Pad", "Concat", "Reshape", "Transpose"} and of_bytes & set(node.input):
            of_bytes.add(node.output[0])
    return [node for node in graph.node if node.op_type == "Cast" and node.input[0] in of_bytes]


def _read_bytes_directly(graph: onnx.GraphProto) -> None:
    """Remove the casts of bytes to floats that the quantiser turns into the same bytes again, in place."""
    for cast in _casts_of_bytes(graph):
        readers = [node for node in graph.node if cast.output[0] in node.input]
        if any(node.op_type != "QuantizeLinear" for node in readers):  # a first layer that is kept in float32
            continue
        for quantise in readers:
            for node in graph.node:
                if quantise.output[0] in node.input:
                    node.input[0] = cast.input[0]
            graph.node.remove(quantise)
        graph.node.remove(cast)


def _keep_float_weights(graph: onnx.GraphProto) -> None:
    """Let onnxruntime leave the weights of layers in float32 as they are, in place; the nodes are to be sorted then.

    When onnxruntime (1.31) opens a file, its WeightBiasQuantization quantises the float weights of each convolution and
    Gemm between a tensor dequantised by one scale and a quantised one, with one scale for all channels. That ruins
    depthwise layers: with its first one in float32 a student named another class on 40% of the pixels, and with all
    layers in int8 on 2%. It passes over tensors with a scale per channel; here all channels have the same.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dequantised = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in list(graph.node):  # it gets more
        is_float_layer = node.op_type in {"Conv", "ConvTranspose", "Gemm"} and node.input[1] in weights
        if not is_float_layer or node.input[0] not in dequantised:
            continue
        values, scale, zero_point = dequantised[node.input[0]].input
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        dims = weights[node.input[1]].dims
        if node.op_type == "Conv":
            channels = dims[1] * attributes.get("group", 1)
        else:
            channels = dims[1] if attributes.get("transB") else dims[0]
        name, constants = f"{node.name}.input", []
        for constant, part in ((scale, "scale"), (zero_point, "zero_point")):
            per_channel = np.repeat(numpy_helper.to_array(weights[constant]), channels)
            constants.append(f"{name}_{part}")
            graph.initializer.append(numpy_helper.from_array(per_channel, constants[-1]))
        node.input[0] = name
        inputs = [values, *constants]
        graph.node.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], f"{name}_dequantise", axis=1))
