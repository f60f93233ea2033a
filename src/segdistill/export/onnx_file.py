"""Write, check and run the ONNX files of students.

A file has the input `image` uint8 (N, H, W, 3) RGB, and the outputs `classes` uint8 (N, H, W) and `logits` float32
(N, C, h, w) on the network's own grid. N, H and W are dynamic. The graph normalises, upsamples and takes the argmax; it
computes the logits on the way to the classes, so the second output adds no work.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.utils
import torch
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file
from segdistill.export.argmax_graph import add_classes
from segdistill.export.quantize import Quantizer, normalizing_nodes
from segdistill.export.wrapper import ExportWrapper
from segdistill.formats.header import KEY, MEAN, STD, Header
from segdistill.nets.onnx_session import INPUT, OUTPUTS, open_session
from segdistill.nets.registry import native_stride


def write_float32(path: str | Path, net: nn.Module, header: Header, opset: int, size_px: tuple[int, int]) -> None:
    """Write `net` as a valid ONNX file with `header` as metadata, atomically.

    Args:
        size_px: (height, width) of the frames to trace it with; the file runs at any size.
    """
    _write(path, _traced(ExportWrapper(net), opset, size_px), header)


def write_int8(path: str | Path, net: nn.Module, header: Header, opset: int, images: np.ndarray) -> None:
    """Write `net` quantised to int8, with ranges calibrated on `images` uint8 (N, H, W, 3); see `write_float32`."""
    quantizer = quantizer_of(net, opset, images.shape[1:3])
    quantizer.calibrate(images)
    write_quantised(path, quantizer.quantised(), header)


def quantizer_of(net: nn.Module, opset: int, size_px: tuple[int, int]) -> Quantizer:
    """Return what quantises `net`, traced with frames of `size_px`; it is not calibrated yet."""
    return Quantizer(_traced(ExportWrapper(net, from_bytes=True), opset, size_px))


def write_quantised(path: str | Path, model: onnx.ModelProto, header: Header, float_layers: Sequence[str] = ()) -> None:
    """Write a model that `Quantizer.quantised` made, with `header` and the layers left in float as metadata."""
    _write(path, model, header.with_history(quantised="int8", float_layers=list(float_layers) or None))


def _traced(net: ExportWrapper, opset: int, size_px: tuple[int, int]) -> onnx.ModelProto:
    """Return the model of `net`, from frames to logits."""
    example = torch.zeros(2, *size_px, 3, dtype=torch.uint8)
    traced = io.BytesIO()
    with warnings.catch_warnings():
        # The tracing exporter writes the same numbers as the dynamo one, in 0.5 s instead of a minute.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example,),
            traced,  # type: ignore[arg-type]  # torch's hints leave out file objects, which this exporter writes
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUTS[1]],
            dynamic_axes={
                INPUT: {0: "batch", 1: "height", 2: "width"},
                OUTPUTS[1]: {0: "batch", 2: "height_cells", 3: "width_cells"},
            },
        )
    return onnx.load_from_string(traced.getvalue())


def _write(path: str | Path, model: onnx.ModelProto, header: Header) -> None:
    """Add the class maps and the metadata to a model from frames to logits, check it and save it."""
    # The exporter does not see the number of classes where the last layer adds a map that was resized to a free size.
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = header.classes
    add_classes(model, native_stride(header.arch, header.output_stride))
    # The quantiser also names operator sets that no node uses. onnxruntime 1.15.1 and 1.17.3 refuse such files; 1.15.1
    # opens a file that names only the sets it uses.
    used = [entry for entry in model.opset_import if entry.domain in {"", *(node.domain for node in model.graph.node)}]
    del model.opset_import[:]
    model.opset_import.extend(used)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: header.text()})
    model.producer_name, model.doc_string = "segdistill", ""
    onnx.checker.check_model(model, full_check=True)
    with atomic_file(path) as temporary:
        onnx.save(model, temporary)


class OnnxPredictor:
    """Run an exported student, as a ClassPredictor of `evaluate`; `header` is its metadata."""

    def __init__(self, path: str | Path, threads: int) -> None:
        """Open the file.

        Raises:
            UserError: no such file, no ONNX model, or not an exported student.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file")
        try:
            self.session = open_session(str(path), threads)
            inputs = [value.name for value in self.session.get_inputs()]
            outputs = [value.name for value in self.session.get_outputs()]
            metadata = self.session.get_modelmeta().custom_metadata_map
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UserError(f"{path}: no readable ONNX model ({' '.join(str(error).split())[:200]})") from None
        if (inputs, outputs) != ([INPUT], list(OUTPUTS)) or KEY not in metadata:
            raise UserError(
                f"{path}: has inputs {inputs} and outputs {outputs}; a student has {[INPUT]} and {list(OUTPUTS)}"
            )
        self.header = Header.parse(metadata[KEY], path)

    def logits_and_classes(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return logits (B, C, h, w) and classes uint8 (B, H, W), both as the graph computes them."""
        classes, logits = self.session.run(list(OUTPUTS), {INPUT: images_BHW3})
        return torch.from_numpy(logits), torch.from_numpy(classes)

    def classes(self, images_BHW3: np.ndarray) -> np.ndarray:
        """Return the class maps uint8 (B, H, W) without copying the logits."""
        return self.session.run(OUTPUTS[:1], {INPUT: images_BHW3})[0]


def forward_part(path: str | Path) -> tuple[onnx.ModelProto, str]:
    """Return (the part of an exported file from normalised pixels to logits, the name of its input).

    The name is INPUT where the first layer normalises: then the part reads frames.
    """
    model = onnx.load(path)
    chain = normalizing_nodes(model.graph)
    start = chain[-1].output[0] if chain else INPUT
    typed = onnx.shape_inference.infer_shapes(model)
    return onnx.utils.Extractor(typed).extract_model([start], [OUTPUTS[1]]), start


def normalised_planes(images_NHW3: np.ndarray) -> np.ndarray:
    """Return uint8 frames as float32 (N, 3, H, W), normalised as the graph does it."""
    scaled = images_NHW3.astype(np.float32) / 255
    pixels = ((scaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels)


class ForwardSession:
    """Run only the network of an exported file, from normalised pixels (N, 3, H, W) to logits.

    Where the first convolution normalises, as in some int8 files, run it from bytes.
    """

    def __init__(self, path: str | Path, threads: int) -> None:
        part, self._start = forward_part(path)
        self.session = open_session(part.SerializeToString(), threads)
        self._pixels: dict[tuple, np.ndarray] = {}

    def run(self, image_NHW3: np.ndarray) -> np.ndarray:
        """Return the logits of frames; the first call for a size keeps their normalised pixels for later calls."""
        if self._start == INPUT:
            return self.session.run([OUTPUTS[1]], {INPUT: image_NHW3})[0]
        if image_NHW3.shape not in self._pixels:
            self._pixels[image_NHW3.shape] = normalised_planes(image_NHW3)
        return self.session.run([OUTPUTS[1]], {self._start: self._pixels[image_NHW3.shape]})[0]
