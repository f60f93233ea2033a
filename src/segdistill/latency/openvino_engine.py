"""Exported students on OpenVINO's CPU plugin, an engine that `benchmark.engines` may name."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segdistill.export.onnx_file import OnnxPredictor, forward_part, normalised_planes
from segdistill.latency.engines import Call, Engine
from segdistill.nets.onnx_session import INPUT, read_for_serving

# Row of the benchmark: the file, and the precision of its layers that are not int8.
WAYS = {"float32": ("float32", "f32"), "bfloat16": ("float32", "bf16"), "int8": ("int8", "f32")}


def openvino_engines(files: dict[str, Path], frames_NHW3: np.ndarray, threads: int) -> dict[str, Engine]:
    """Return the files of one network, by precision, on OpenVINO; bfloat16 where the processor computes in it.

    Each engine's facts say on how many pixels of `frames_NHW3` it names the class that onnxruntime does.
    """
    import openvino

    core, size_px = openvino.Core(), frames_NHW3.shape[1:3]
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    ways = {name: way for name, way in WAYS.items() if name != "bfloat16" or has_bfloat16}

    def compiled(model: bytes, shape: tuple[int, ...], hint: str) -> Call:
        """Return a call with one input and one output, of a fixed size, as one deploys it."""
        read = core.read_model(model)
        read.reshape(list(shape))
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(read, "CPU", settings).create_infer_request()
        return lambda inputs: request.infer({0: inputs})[0]

    engines = {}
    for name, (precision, hint) in ways.items():
        file = files[precision]
        end_to_end = compiled(read_for_serving(file)[0].SerializeToString(), (1, *size_px, 3), hint)
        part, start = forward_part(file)
        reads_bytes = start == INPUT
        network = compiled(part.SerializeToString(), (1, *size_px, 3) if reads_bytes else (1, 3, *size_px), hint)
        pixels = None if reads_bytes else normalised_planes(frames_NHW3[:1])

        def forward(image_1HW3: np.ndarray, network: Call = network, pixels: np.ndarray | None = pixels) -> object:
            return network(image_1HW3 if pixels is None else pixels)

        expected = OnnxPredictor(file, threads)
        agreeing = [end_to_end(frame[None]) == expected.classes(frame[None]) for frame in frames_NHW3]
        how = f"OpenVINO CPU, {file.name}, {hint}"
        engines[name] = Engine(forward, end_to_end, how, {"agreement_with_onnxruntime": float(np.mean(agreeing))})
    return engines
