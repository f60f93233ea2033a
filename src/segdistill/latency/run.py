"""Measure the latency of the teacher and the students on every engine, interleaved in one process.

Latency depends on the network, not on its weights: runs with the same network and output stride share one measurement,
so that noise does not look like a difference between them.

Each engine runs once untimed before it is timed. On 2 cores, the first call of an ONNX file after a call of torch,
forward or end to end, took 3 to 5 ms longer. Without the untimed call, forward alone could look slower than end to end.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from segdistill.core.files import write_json
from segdistill.core.provenance import package_versions, processor, settings_hash, usable_cores
from segdistill.data.prepared import PreparedData
from segdistill.data.teacher_cache import is_ensemble
from segdistill.export.onnx_file import write_float32, write_int8
from segdistill.formats.header import read_header
from segdistill.latency.engines import Call, Engine, best_torch_engine, onnx_engine, torch_engine
from segdistill.latency.openvino_engine import openvino_engines
from segdistill.latency.timing import interleaved_ms, quantiles
from segdistill.nets.device import Compute, resolve_device
from segdistill.nets.onnx_session import read_for_serving
from segdistill.nets.resize import resize_images
from segdistill.nets.weights import load_net
from segdistill.params.engines import check_engines
from segdistill.params.model import Params
from segdistill.paths import BENCHMARK, FINETUNED, MODELS, STUDENT_ONNX, TEACHER_WEIGHTS, run_models
from segdistill.scoring.evaluate import classes_of, evenly_spaced
from segdistill.teacher.model import open_teacher

ENSEMBLE_NETWORK = "ensemble"  # in place of the name of a network
AGREEMENT_FRAMES = 4  # on which engines are compared with onnxruntime
_SETTLE = "settle"  # the untimed call


def benchmark(params: Params, models: Path = MODELS, out: Path = BENCHMARK) -> None:
    """Time every distinct network of the sweep and the teacher, and write metrics/benchmark.json."""
    check_engines(params)
    load_before = os.getloadavg()
    data = PreparedData.open()
    # Up to 16 val frames uint8 (N, H, W, 3) in memory, at the size to time.
    frames = np.array(data.val.images[evenly_spaced(len(data.val), 16)])
    size_px = params.benchmark.size_px
    if size_px is not None and tuple(size_px) != frames.shape[1:3]:
        frames = resize_images(frames, size_px)
    compute = resolve_device("cpu", params.compute.precision, params.benchmark.threads)
    networks = {name: _network(models, name) for name in ("teacher", *params.students())}
    first_of = {networks[name]: name for name in reversed(networks)}
    made: dict[str, dict[str, Engine]] = {}  # by network and backend
    with tempfile.TemporaryDirectory() as scratch:
        ensemble = _ensemble_engines(models / "teacher", compute)
        # Open the students first: exporting the teacher takes long, so report an unreadable student before that.
        for network, name in sorted(first_of.items(), key=lambda item: item[1] == "teacher"):
            if name == "teacher" and ensemble:
                made[network] = ensemble
                continue
            files = _onnx_files(params, name, models, Path(scratch), data)
            made[network] = _engines(_weights(models, name), files, compute, params, frames)
        in_order = dict.fromkeys(networks.values())
        engines = {(network, backend): made[network][backend] for network in in_order for backend in made[network]}
        rows = time_engines(engines, frames, params)
    conditions = {
        "processor": processor(),
        "threads": compute.threads,
        "device": "cpu",
        "size_px": list(frames.shape[1:3]),
        "batch": 1,
        "frames": params.benchmark.frames,
        "warmup_frames": params.benchmark.warmup_frames,
        "interleaved": "a frame per network, backend and kind of call in every round, after an untimed one per backend",
        "versions": package_versions("torch", *params.benchmark.engines, "onnxruntime", "onnx", "numpy", "segdistill"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpus": usable_cores(),
        # Processes that ran or waited for a core, averaged over the minute before; the second includes this one.
        "load_1min_before": load_before[0],
        "load_1min_after": os.getloadavg()[0],
    }
    write_json(out, {"conditions": conditions, "networks": rows, "models": networks})


def _ensemble_engines(folder: Path, compute: Compute) -> dict[str, Engine]:
    """Return an ensemble teacher as `teacher-logits` runs it, the only engine for it; empty for a single network."""
    if not is_ensemble(folder):
        return {}
    teacher = open_teacher(folder, compute.in_float32())

    def end_to_end(image_1HW3: np.ndarray) -> np.ndarray:
        return classes_of(teacher.predict.logits(image_1HW3), image_1HW3.shape[1:3]).cpu().numpy()

    backend = "onnx_float32" if teacher.of_onnx_only else "torch"
    return {backend: Engine(teacher.predict.logits, end_to_end, teacher.description)}


def _network(models: Path, name: str) -> str:
    """Return the name of a model's network: architecture and output stride, or "ensemble".

    An int8 file with layers in float32 is another network to the processor: its name says how many and has their hash.
    """
    if name == "teacher" and is_ensemble(models / "teacher"):
        return ENSEMBLE_NETWORK
    header = read_header(_weights(models, name))
    network = f"{header.arch}_os{header.output_stride}"
    if name == "teacher":
        return network
    int8 = run_models(name, models) / STUDENT_ONNX["int8"]
    # Of a run without its files another run of the network is timed; `_onnx_files` refuses a network without any.
    layers = read_for_serving(int8)[1].get("float_layers") if int8.is_file() else None
    return network if not layers else f"{network}_float{len(layers)}_{settings_hash(layers)[:6]}"


def _weights(models: Path, name: str) -> Path:
    if name == "teacher":
        return models / "teacher" / TEACHER_WEIGHTS
    return run_models(name, models) / FINETUNED


def _onnx_files(params: Params, name: str, models: Path, scratch: Path, data: PreparedData) -> dict[str, Path]:
    """Return the exported ONNX files of a student; export those of the teacher into `scratch`."""
    if name != "teacher":
        return {precision: run_models(name, models) / file for precision, file in STUDENT_ONNX.items()}
    net, header = load_net(_weights(models, name))
    files = {"float32": scratch / "teacher.onnx", "int8": scratch / "teacher.int8.onnx"}
    size_px = params.benchmark.size_px or data.val.size_px
    write_float32(files["float32"], net, header, params.export.opset, size_px)
    calibration = data.holdout.images[evenly_spaced(len(data.holdout), params.export.calibration_images)]
    write_int8(files["int8"], net, header, params.export.opset, calibration)
    return files


def _engines(
    weights: Path, files: dict[str, Path], compute: Compute, params: Params, frames: np.ndarray
) -> dict[str, Engine]:
    """Return a single network on every engine that params name.

    Of torch: as it is, at its fastest, on CUDA if any. Of the others: each ONNX file; `files` has them by precision.
    """
    engines: dict[str, Engine] = {}
    # Open the files first, whichever engines run them: an unreadable one is reported at once.
    exported = {f"onnx_{precision}": onnx_engine(file, compute.threads) for precision, file in files.items()}
    if "torch" in params.benchmark.engines:
        engines["torch"] = torch_engine(load_net(weights)[0], compute.in_float32())
        engines["torch_best"] = best_torch_engine(load_net(weights)[0], compute, frames[:1])
        if params.compute.device != "cpu" and torch.cuda.is_available():
            on_gpu = resolve_device("cuda", params.compute.precision, params.benchmark.threads)
            engines["torch_cuda"] = torch_engine(on_gpu.place(load_net(weights)[0]), on_gpu, f"CUDA, {on_gpu.dtype}")
    if "onnxruntime" in params.benchmark.engines:
        engines |= exported
    if "openvino" in params.benchmark.engines:
        made = openvino_engines(files, frames[:AGREEMENT_FRAMES], compute.threads)
        engines |= {f"openvino_{precision}": engine for precision, engine in made.items()}
    return engines


def time_engines(engines: dict[tuple[str, str], Engine], frames: np.ndarray, params: Params) -> dict[str, dict]:
    """Return the timings of engines by (network, backend) as rows by network, then backend; all calls interleaved."""

    def on_frames(call: Call) -> Callable[[int], object]:
        return lambda number: call(frames[number % len(frames)][None])

    calls = {}
    for key, engine in engines.items():
        calls[*key, _SETTLE] = on_frames(engine.end_to_end)
        calls[*key, "forward"] = on_frames(engine.forward)
        calls[*key, "end_to_end"] = on_frames(engine.end_to_end)
    taken_ms = interleaved_ms(calls, params.benchmark.frames, params.benchmark.warmup_frames)
    rows: dict[str, dict] = {}
    for (network, backend, what), taken in taken_ms.items():
        if what == _SETTLE:
            continue
        engine = engines[network, backend]
        row = rows.setdefault(network, {}).setdefault(backend, {"how": engine.how, **engine.facts})
        row |= quantiles(taken, what)
        if what == "end_to_end":
            row["end_to_end_total_ms"] = float(taken.sum())
    return rows
