"""Where the arithmetic runs: device, precision of the forward pass, threads."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import nn

from segdistill.base.errors import InputError
from segdistill.provenance import usable_cores


class Compute(NamedTuple):
    """A device, the dtype of autocast (float32 is none) and the CPU threads in use."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def in_float32(self) -> Compute:
        """The same without autocast. What is reported of a net on val is of float32, whatever it was trained in."""
        return self._replace(dtype=torch.float32)

    def place(self, net: nn.Module) -> nn.Module:
        """The net on the device, in the memory layout that its convolutions are fastest in."""
        return net.to(self.device, memory_format=torch.channels_last)


def choose(device: str, precision: str, threads: int) -> Compute:
    """Resolve the params section `compute` on this machine and set the threads.

    Raises:
        InputError: CUDA is asked for and not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device: found cuda; this machine has no CUDA device, allowed are auto and cpu")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    if use_cuda:
        # What runs on a CPU is repeatable as it is (tested). The same as torch.use_deterministic_algorithms(True,
        # warn_only=True), which also imports torch's compiler, for seconds.
        torch.set_deterministic_debug_mode("warn")
        # Nothing here reads memory that it did not write, and filling it first would cost each step.
        torch.utils.deterministic.fill_uninitialized_memory = False
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if precision == "auto" and (use_cuda or _cpu_computes_bfloat16()):
        dtype = torch.bfloat16
    return Compute(torch.device("cuda" if use_cuda else "cpu"), dtype, threads)


def _cpu_computes_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: it is with AMX or AVX512-BF16, and a loss where it is emulated."""
    capability = torch.backends.cpu.get_cpu_capability()
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return amx or (capability == "AVX512" and avx512_bf16)
