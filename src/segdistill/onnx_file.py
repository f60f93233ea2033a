"""ONNX files: the one module that knows onnx and onnxruntime.

A file of ours is one graph for shipping and for checking: input `image` uint8 (N, H, W, 3) RGB, outputs `classes` uint8
(N, H, W) trainIds and `logits` float32 (N, C, h, w) on the net's own grid. Normalisation, upsampling and argmax are in
the graph; the logits are an intermediate of it and cost nothing to name. N, H and W are dynamic.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import onnxruntime
import torch
from torch import Tensor, nn

from segdistill.errors import InputError
from segdistill.files import atomic_file
from segdistill.nets.resize import upsample
from segdistill.transforms import MEAN, STD

INPUT, OUTPUTS = "image", ("classes", "logits")
_METADATA = "segdistill"


class ShippedNet(nn.Module):
    """A net from uint8 frames (N, H, W, 3) to classes uint8 (N, H, W) and logits (N, C, h, w)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", (1 / (255 * torch.tensor(STD))).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1), persistent=False)

    def forward(self, image_NHW3: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image_NHW3.permute(0, 3, 1, 2).float() * self.scale + self.shift
        logits = self.net(pixels)
        classes = upsample(logits, image_NHW3.shape[1:3]).argmax(1).to(torch.uint8)
        return classes, logits


def write_float32(path: str | Path, net: nn.Module, facts: dict, opset: int, size_px: tuple[int, int]) -> None:
    """Trace `net` into an ONNX file with `facts` as metadata, atomically; checked to be a valid model."""
    example = torch.zeros(2, *size_px, 3, dtype=torch.uint8)
    frame_axes = {0: "batch", 1: "height", 2: "width"}
    logits_axes = {0: "batch", 2: "height_cells", 3: "width_cells"}
    with warnings.catch_warnings(), atomic_file(path) as temporary:
        # The tracing exporter: the same numbers as the dynamo one, in 0.5 s instead of a minute for these nets.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ShippedNet(net).eval(),
            (example,),
            temporary,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={INPUT: frame_axes, "classes": frame_axes, "logits": logits_axes},
        )
        model = onnx.load(temporary)
        _describe(model, facts)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, temporary)


def write_int8(path: str | Path, float32: str | Path, images: np.ndarray) -> None:
    """Quantise an ONNX file statically, its ranges calibrated on `images` uint8 (N, H, W, 3), atomically.

    Unsigned activations and signed per-channel weights: what x86 multiplies in one instruction.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    facts = read_metadata(float32)
    with tempfile.TemporaryDirectory() as folder, atomic_file(path) as temporary, _quiet("root"):
        simplified = Path(folder) / "simplified.onnx"
        quant_pre_process(str(float32), str(simplified), skip_symbolic_shape=True)
        quantize_static(
            str(simplified),
            str(temporary),
            _CalibrationReader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Add", "Concat", "MaxPool", "GlobalAveragePool", "Relu", "Clip"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(temporary)
        _describe(model, facts | {"quantised": "int8"})
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, temporary)


class _CalibrationReader:
    def __init__(self, images: np.ndarray) -> None:
        self._images: Iterator[np.ndarray] = iter(images)

    def get_next(self) -> dict | None:
        image = next(self._images, None)
        return None if image is None else {INPUT: np.array(image)[None]}


class _quiet:  # noqa: N801 - a context manager
    """Keep a logger from telling what it tells about every model."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)


def _describe(model: onnx.ModelProto, facts: dict) -> None:
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {_METADATA: json.dumps(facts, sort_keys=True)})
    model.producer_name, model.doc_string = "segdistill", ""


def read_metadata(path: str | Path) -> dict:
    """The facts in an ONNX file of ours.

    Raises:
        InputError: no such file, no ONNX model, or none of ours.
    """
    model = _opened(path, threads=1).get_modelmeta().custom_metadata_map
    return json.loads(model[_METADATA])


def _opened(path: str | Path, threads: int) -> onnxruntime.InferenceSession:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        session = _session(str(path), threads)
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise InputError(f"{path}: no readable ONNX model ({' '.join(str(error).split())[:200]})") from None
    names = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    if names != ([INPUT], list(OUTPUTS)) or _METADATA not in session.get_modelmeta().custom_metadata_map:
        raise InputError(
            f"{path}: has inputs {names[0]} and outputs {names[1]}; ours has {[INPUT]} and {list(OUTPUTS)}"
        )
    return session


def _session(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Workers that spin after a run would take the cores from whoever comes next in this process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxPredictor:
    """An ONNX file of ours, as a Predictor of `evaluate`."""

    def __init__(self, path: str | Path, threads: int) -> None:
        self.session = _opened(path, threads)

    def __call__(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        classes, logits = self.session.run(list(OUTPUTS), {INPUT: images_BHW3})
        return torch.from_numpy(logits), torch.from_numpy(classes)

    def classes(self, images_BHW3: np.ndarray) -> np.ndarray:
        """Only the class maps, uint8 (B, H, W): what is shipped."""
        return self.session.run(OUTPUTS[:1], {INPUT: images_BHW3})[0]


class ForwardSession:
    """The net alone of an ONNX file of ours: normalised pixels (N, 3, H, W) to logits, cut from the graph in memory."""

    def __init__(self, path: str | Path, threads: int) -> None:
        model = onnx.load(path)
        pixels = _normalised_pixels(model)
        cut = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model)).extract_model([pixels], [OUTPUTS[1]])
        self.session = _session(cut.SerializeToString(), threads)
        self._pixels: dict[tuple, np.ndarray] = {}

    def run(self, image_NHW3: np.ndarray) -> np.ndarray:
        """Logits of frames whose normalised pixels are made once per shape, outside of what is timed."""
        if image_NHW3.shape not in self._pixels:
            scaled = image_NHW3.astype(np.float32) / 255
            pixels = ((scaled - np.float32(MEAN)) / np.float32(STD)).transpose(0, 3, 1, 2)
            self._pixels[image_NHW3.shape] = np.ascontiguousarray(pixels)
        name = self.session.get_inputs()[0].name
        return self.session.run([OUTPUTS[1]], {name: self._pixels[image_NHW3.shape]})[0]


def _normalised_pixels(model: onnx.ModelProto) -> str:
    """The name of the tensor that the net itself starts from: the end of the chain of normalising operators."""
    readers: dict[str, list] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    name = INPUT
    while True:
        chain = [node for node in readers[name] if node.op_type in {"Transpose", "Cast", "Mul", "Add"}]
        if not chain:
            return name
        name = chain[0].output[0]
