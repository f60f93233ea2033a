"""What tests on a GPU share: their marker, and a GPU as the stages use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from segdistill.nets.device import Compute, compute_float32_exactly, compute_repeatably

_MARKS = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def needs_gpu(test):
    """Mark a test that runs on a CUDA device, and skip it where there is none."""
    for mark in _MARKS:
        test = mark(test)
    return test


@pytest.fixture
def repeatable_gpu() -> Iterator[Compute]:
    """The first GPU, in float32, with the settings of a stage; they are as before afterwards."""
    yield from _with_settings(Compute(torch.device("cuda", 0), torch.float32, 1))


def _with_settings(compute: Compute) -> Iterator[Compute]:
    mode, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    tf32 = torch.backends.cudnn.allow_tf32
    compute_float32_exactly()
    compute_repeatably()
    yield compute
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cudnn.allow_tf32 = tf32
