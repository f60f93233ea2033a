"""Networks on each engine, as two calls to time: forward only, and end to end.

forward runs only the network, from normalised float32 pixels (1, 3, H, W) that are already in place. end_to_end turns a
uint8 frame (1, H, W, 3) in main memory into its class map uint8 (1, H, W) in main memory. H/W: frame in pixels.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import ForwardSession, OnnxPredictor
from segdistill.latency.timing import interleaved_ms
from segdistill.nets.device import Compute
from segdistill.nets.resize import upsample
from segdistill.scoring.evaluate import classes_of

Call = Callable[[np.ndarray], object]
Argmax = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]  # logits (1, C, h, w) to classes uint8 (1, H, W)


class Engine(NamedTuple):
    """The two calls of a network on one engine; `how` describes the engine and its settings, `facts` join its row."""

    forward: Call
    end_to_end: Call
    how: str
    facts: Mapping[str, float] = {}


def full_size_argmax(logits_1Chw: torch.Tensor, size_px: tuple[int, int]) -> torch.Tensor:
    """Return classes uint8 (1, H, W) the usual way: upsample, then argmax."""
    return upsample(logits_1Chw, size_px).argmax(1).to(torch.uint8)


def torch_engine(
    net: nn.Module, compute: Compute, how: str = "eager float32", argmax: Argmax = full_size_argmax
) -> Engine:
    """Return a network that torch runs, on the device and in the precision of `compute`.

    Pixels are channels-last in memory, like frames; eager torch is slower on planar ones.
    """

    def finish() -> None:
        if compute.device.type == "cuda":
            torch.cuda.synchronize()

    pixels: dict[tuple[int, ...], torch.Tensor] = {}  # normalised, by the shape of the frame

    @torch.inference_mode()
    def forward(image_1HW3: np.ndarray) -> torch.Tensor:
        if image_1HW3.shape not in pixels:
            pixels[image_1HW3.shape] = normalize(torch.from_numpy(image_1HW3).to(compute.device))
        with compute.autocast():
            result = net(pixels[image_1HW3.shape])
        finish()
        return result

    @torch.inference_mode()
    def end_to_end(image_1HW3: np.ndarray) -> np.ndarray:
        inputs = normalize(torch.from_numpy(image_1HW3).to(compute.device))
        with compute.autocast():
            logits = net(inputs).float()
        return argmax(logits, image_1HW3.shape[1:3]).cpu().numpy()

    return Engine(forward, end_to_end, how)


def best_torch_engine(net: nn.Module, compute: Compute, image_1HW3: np.ndarray) -> Engine:
    """Time layouts, folding and bfloat16 in torch without a compiler, and return the fastest.

    All of them take the argmax strip by strip, which is faster than at full size.
    """
    plain = compute.in_float32()
    nets: dict[str, tuple[nn.Module, Compute]] = {"channels-last float32": (compute.place(net), plain)}
    if compute.dtype == torch.bfloat16:
        nets["channels-last bfloat16 autocast"] = (compute.place(net), compute)
    if plain.device.type == "cpu":
        example = normalize(torch.from_numpy(image_1HW3))
        # torch cannot trace every network; those have one candidate less.
        with warnings.catch_warnings(), torch.inference_mode(), contextlib.suppress(RuntimeError):
            warnings.simplefilter("ignore")
            frozen = torch.jit.optimize_for_inference(torch.jit.trace(net, example, check_trace=False))
            nets["traced, frozen, batch norm folded, oneDNN layouts, float32"] = (frozen, plain)
    candidates = {how: torch_engine(net, compute, how, classes_of) for how, (net, compute) in nets.items()}
    calls = {how: (lambda _, engine=engine: engine.end_to_end(image_1HW3)) for how, engine in candidates.items()}
    medians = {how: float(np.median(taken)) for how, taken in interleaved_ms(calls, rounds=7, warmup=3).items()}
    return candidates[min(medians, key=lambda how: medians[how])]


def onnx_engine(path: str | Path, threads: int) -> Engine:
    """Return an exported student on onnxruntime's CPU provider."""
    whole, head = OnnxPredictor(path, threads), ForwardSession(path, threads)
    return Engine(head.run, whole.classes, f"onnxruntime CPU, {Path(path).name}")
