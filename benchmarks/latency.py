"""Latency end to end, a uint8 frame in and its class map out: torch eager against our ONNX files and peers (6, 7).

One frame of 512x1024 at a time; every engine on the same threads, all engines of one network in turn. The time depends
on the weights only in the argmax of the graph: the more often classes change from pixel to pixel, the longer it takes.
So the last layer of each untrained network is fitted to the labels of the frames; `mixed_blocks` in the conditions is
the share of blocks with more than one class (0.07 for labels of CamVid at this size; 0.18 for a student of CamVid at
180x240, where there are more borders).
"""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks.rows import Row, ratio_row
from benchmarks.streets import streets_on_disk
from benchmarks.usual_loop import AsPublished
from segdistill.core.provenance import package_versions
from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import OnnxPredictor, write_float32, write_int8
from segdistill.formats.header import MEAN, STD, Header
from segdistill.latency.timing import interleaved_ms
from segdistill.nets.device import resolve_device
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.prepare.cityscapes import CLASSES

STUDENT, LIGHT = "deeplabv3plus_mobilenet", "deeplabv3_mobilenet_lite"
TEACHERS = ("deeplabv3plus_resnet50", "deeplabv3plus_resnet101")
FRAME_PX, QUICK_PX = (512, 1024), (128, 256)
OPSET, EAGER = 18, ("eager, NCHW", "eager, channels-last")
# By network: the number of its row, and the targets of int8 and float32.
TARGETS = {
    STUDENT: ("6", "at least 8", "at least 3"),
    LIGHT: ("7-light", "at least 6.8", None),
    **{teacher: (f"7-{teacher.split('_')[1]}", "at least 5.1", None) for teacher in TEACHERS},
}
Call = Callable[[np.ndarray], np.ndarray]


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 6 and 7."""
    threads = resolve_device("cpu", "float32", 0).threads
    split = streets_on_disk(QUICK_PX if quick else FRAME_PX, 8).split
    frames, labels = np.array(split.images[:4]), np.array(split.labels[:4])
    conditions: dict = {"frame_px": list(frames.shape[1:3]), "batch": 1, "p50_ms": {}, "mixed_blocks": {}}
    rows: list[Row] = []
    for arch in (STUDENT, LIGHT) if quick else TARGETS:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = fitted(arch, frames, labels)
            calls, files = _calls(net, arch, frames, Path(folder), threads)
            rounds = 1 if quick else (6 if arch in TEACHERS else 15)
            taken_ms = interleaved_ms(
                {
                    name: lambda number, call=call: call(frames[number % len(frames)][None])
                    for name, call in calls.items()
                },
                rounds,
                warmup=1 if quick else 2,
            )
            conditions["mixed_blocks"][arch] = mixed_blocks(OnnxPredictor(files["float32"], threads).classes(frames))
        conditions["p50_ms"][arch] = {name: round(float(np.median(taken)), 1) for name, taken in taken_ms.items()}
        rows += _rows(arch, taken_ms)
    conditions["peers"] = package_versions("segmentation-models-pytorch", "openvino") or "none installed"
    return conditions, rows


def fitted(arch: str, frames: np.ndarray, labels: np.ndarray) -> nn.Module:
    """Return the network named `arch`: random, batch norm fitted to `frames`, the last layer by least squares."""
    torch.manual_seed(0)
    net, pixels = build(arch, CLASSES).train(), normalize(torch.from_numpy(frames))
    last = net.classifier.classifier[-1]
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        net(pixels[:2])
        hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        net.eval()(pixels)
        hook.remove()
        features = seen[0].movedim(1, -1)
        cells = torch.from_numpy(labels)[:, None].float()
        cells = nn.functional.interpolate(cells, size=features.shape[1:3], mode="nearest").flatten().long()
        features, known = features.flatten(0, 2), cells < CLASSES
        inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1)[known].double()
        wanted = nn.functional.one_hot(cells[known], CLASSES).double()
        ridge = 1e-3 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ wanted)
        last.weight.copy_(solution[:-1].T[:, :, None, None])
        last.bias.copy_(solution[-1])
    return net


def mixed_blocks(classes_NHW: np.ndarray) -> float:
    """Return the share of blocks of 4x4 pixels between cells that hold more than one class."""
    inner = classes_NHW[:, 2:-2, 2:-2]
    frames, height, width = inner.shape
    blocks = inner.reshape(frames, height // 4, 4, width // 4, 4)
    return round(float((blocks.max((2, 4)) != blocks.min((2, 4))).mean()), 3)


def _calls(net: nn.Module, arch: str, frames: np.ndarray, folder: Path, threads: int) -> tuple[dict[str, Call], dict]:
    """Return every engine of one network by its name, and its ONNX files by precision."""
    header = Header.of_net(arch, CLASSES, 16)
    files = {"float32": folder / "float32.onnx", "int8": folder / "int8.onnx"}
    write_float32(files["float32"], net, header, OPSET, frames.shape[1:3])
    write_int8(files["int8"], net, header, OPSET, frames)
    published = AsPublished(net).at_stride_4 if arch != LIGHT else net
    calls = {EAGER[0]: eager(published, torch.contiguous_format), EAGER[1]: eager(published, torch.channels_last)}
    calls |= {precision: OnnxPredictor(file, threads).classes for precision, file in files.items()}
    if arch == STUDENT and importlib.util.find_spec("segmentation_models_pytorch"):
        calls |= _smp_calls(frames, folder, threads)
    if arch == STUDENT and importlib.util.find_spec("openvino"):
        calls |= _openvino_calls(files, frames.shape[1:], threads)
    return calls, files


def eager(net: Callable, layout: torch.memory_format) -> Call:
    """Return a network run by torch as public code does: normalise, forward, upsample, argmax."""
    mean, std = (torch.tensor(value).view(3, 1, 1) * 255 for value in (MEAN, STD))

    @torch.inference_mode()
    def call(image_1HW3: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(image_1HW3).permute(0, 3, 1, 2).float().contiguous(memory_format=layout)
        logits = net(pixels.sub_(mean).div_(std))
        return upsample(logits, image_1HW3.shape[1:3]).argmax(1).to(torch.uint8).numpy()

    return call


def _smp_calls(frames: np.ndarray, folder: Path, threads: int) -> dict[str, Call]:
    """Return the DeepLabV3+ MobileNetV2 of segmentation-models-pytorch: eager, and torch's export on onnxruntime."""
    import segmentation_models_pytorch as smp

    net = smp.DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=CLASSES).eval()
    file, example = folder / "smp.onnx", normalize(torch.from_numpy(frames[:1])).contiguous()
    torch.onnx.export(net, (example,), file, dynamo=False, opset_version=OPSET, input_names=["pixels"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def exported(image_1HW3: np.ndarray) -> np.ndarray:
        pixels = normalize(torch.from_numpy(image_1HW3)).contiguous().numpy()
        return torch.from_numpy(session.run(None, {"pixels": pixels})[0]).argmax(1).to(torch.uint8).numpy()

    return {"smp eager": eager(net, torch.contiguous_format), "smp onnx": exported}


def _openvino_calls(files: dict[str, Path], frame_HW3: tuple[int, ...], threads: int) -> dict[str, Call]:
    """Return our files on OpenVINO, with one fixed size; it emulates bfloat16 where the processor has none."""
    import openvino

    core = openvino.Core()

    def compiled(precision: str, hint: str) -> Call:
        model = core.read_model(files[precision])
        model.reshape([1, *frame_HW3])
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda image_1HW3: request.infer({0: image_1HW3})["classes"]

    ways = {"float32": ("float32", "f32"), "bfloat16": ("float32", "bf16"), "int8": ("int8", "f32")}
    return {f"openvino {name}": compiled(*way) for name, way in ways.items()}


def _rows(arch: str, taken_ms: dict[str, np.ndarray]) -> list[Row]:
    """Return the ratios of the faster eager form to each engine."""
    number, int8_target, float32_target = TARGETS[arch]
    usual = min(EAGER, key=lambda name: np.median(taken_ms[name]))
    parts = {name: np.median(taken) for name, taken in taken_ms.items()}
    note = f"{usual} takes {parts[usual]:.0f} ms, int8 {parts['int8']:.0f} ms, float32 {parts['float32']:.0f} ms"
    rows = [
        ratio_row(
            number, f"{arch}: torch eager / our int8 ONNX", taken_ms[usual] / taken_ms["int8"], int8_target, note
        ),
        ratio_row(
            f"{number}-float32",
            f"{arch}: torch eager / our float32 ONNX",
            taken_ms[usual] / taken_ms["float32"],
            float32_target,
        ),
    ]
    peers = [name for name in taken_ms if name not in (*EAGER, "int8", "float32")]
    return rows + [
        ratio_row(
            f"{number}-{name.replace(' ', '-')}", f"{arch}: torch eager / {name}", taken_ms[usual] / taken_ms[name]
        )
        for name in peers
    ]
