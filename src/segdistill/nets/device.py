"""Where a network runs: device, precision of the forward pass, threads, memory that is kept.

Shapes: B batch, C classes, H/W image in pixels, h/w the network's own grid.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.provenance import usable_cores
from segdistill.data.transfer import to_device
from segdistill.data.transforms import normalize
from segdistill.nets.features import HasFeatures
from segdistill.parallel import ranks
from segdistill.params.model import ComputeParams


class Compute(NamedTuple):
    """A device, the dtype of autocast (float32: no autocast) and the CPU threads in use."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    @property
    def precision(self) -> str:
        """Return the dtype's name, as params and metrics spell it."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context of a forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def in_float32(self) -> Compute:
        """Return the same without autocast: metrics on val are computed in float32."""
        return self._replace(dtype=torch.float32)

    def place(self, net: nn.Module) -> nn.Module:
        """Return the network on the device, in the memory layout in which its convolutions are fastest."""
        return net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload] # torch lacks it


def resolve_device(device: str, precision: str, threads: int) -> Compute:
    """Resolve the params section `compute` on this machine and set the threads.

    Raises:
        UserError: compute.device is cuda, and there is no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("compute.device: found cuda; this machine has no CUDA device, allowed are auto and cpu")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    threads = threads or usable_cores()
    torch.set_num_threads(ranks.share_of_threads(threads))
    if use_cuda:
        compute_float32_exactly()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if precision == "auto" and (use_cuda or cpu_computes_bfloat16()):
        dtype = torch.bfloat16
    # With its index, so that it equals the device of a tensor there.
    return Compute(torch.device("cuda", ranks.local_rank()) if use_cuda else torch.device("cpu"), dtype, threads)


def device_of(params: ComputeParams) -> Compute:
    """Resolve the params section `compute` for a stage that trains or evaluates.

    On a CPU, whose results repeat anyway (tested), keep freed memory; on a GPU, make results repeat.
    """
    compute = resolve_device(params.device, params.precision, params.threads)
    if compute.device.type == "cpu":
        keep_freed_memory()
    else:
        compute_repeatably()
    return compute


def compute_float32_exactly() -> None:
    """Let convolutions of float32 on CUDA compute in float32: by default cuDNN rounds their inputs to 10 bits (TF32).

    Metrics are promised in float32, and compare with those of the float32 ONNX file. Matrix products do so by default.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some versions warn that the first flag is an old one
        # It sets convolutions and recurrent layers alike. Set by the new flags alone, they contradict the old one, and
        # torch's compiler, which reads the old one, fails.
        torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]


def compute_repeatably() -> None:
    """Let operations on CUDA give the same bits each time, where torch has a way; it warns of the others."""
    # cuBLAS reads it when torch first multiplies matrices: without it two streams may share a workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # The same as torch.use_deterministic_algorithms(True, warn_only=True), which also imports torch's compiler, for
    # seconds.
    torch.set_deterministic_debug_mode("warn")
    # Nothing here reads memory that it did not write, and filling it first would cost each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class TorchPredictor:
    """A network in eval mode that takes uint8 images; a Predictor of `scoring.evaluate`."""

    def __init__(self, net: nn.Module, compute: Compute) -> None:
        self.net, self.compute = compute.place(net).eval(), compute

    @torch.inference_mode()
    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w) of images uint8 (B, H, W, 3)."""
        return self._run(self.net, images_BHW3).float()

    @torch.inference_mode()
    def features_and_logits(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return float32 features_BCst and logits of uint8 images, of a network that has features."""
        assert isinstance(self.net, HasFeatures)
        features, logits = self._run(self.net.features_and_logits, images_BHW3)
        return features.float(), logits.float()

    def _run(self, forward: Callable[[Tensor], Any], images_BHW3: np.ndarray) -> Any:
        inputs = normalize(to_device(torch.from_numpy(images_BHW3), self.compute.device))
        with self.compute.autocast():
            return forward(inputs)


def cpu_computes_bfloat16() -> bool:
    """Return whether the processor has instructions for bfloat16 (AMX or AVX512-BF16) and torch uses them.

    Without them bfloat16 is emulated: slower than float32, 30 times in some convolutions.
    """
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    # The capability is lower than the processor's where ATEN_CPU_CAPABILITY hides instructions.
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and (amx or avx512_bf16)


# Parameters of mallopt (malloc.h of the GNU C library).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in the process from now on; return False where the C library is not GNU's.

    glibc returns large blocks to the kernel after each free, and the next forward pays the page faults again: 1.05
    times the training step, 1.54 times a forward over 1024x2048 (benchmarks/memory.py). Results keep their bits. The
    process does not grow beyond its largest use, except for gaps between blocks (4 to 13% in trainings).
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl has none
        return False
    # Give no block a mapping of its own, which free() would return to the kernel, and never trim the heap's end.
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
