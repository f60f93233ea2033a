"""Copies from main memory to a GPU for which the host does not wait.

An ordinary copy first waits until the GPU has done all that is queued, so a few small ones in a step leave it idle
between steps. A copy from page-locked memory is queued like any other work.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`; the same tensor where it is there already."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    # torch's allocator keeps the page-locked memory until the copy is done, even if the tensor is dropped. torch would
    # first copy a tensor with gaps to ordinary memory.
    pinned = tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()
    return pinned.to(device, non_blocking=True)


@lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `values` as a tensor that stays on its device; do not change it."""
    # Evaluations run in inference mode, whose tensors autograd could not use afterwards.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
