"""A net as torch's compiler makes it, for the steps of a long training."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from segdistill.base.errors import InputError


def compiled(net: nn.Module, name: str, path: str) -> Callable[[Tensor], Tensor]:
    """`net` as one function, compiled at its first call: the same up to rounding, dropout included.

    It shares the weights of `net`, which itself stays as it is. torch keeps what it compiled for later processes.

    Args:
        name: of the training, for what is told.
        path: in params of what asks for this.

    Raises:
        InputError: (the function) torch cannot compile here.
    """
    fast = torch.compile(net, dynamic=False, options={"fallback_random": True})
    told = False

    def forward(images_BCHW: Tensor) -> Tensor:
        nonlocal told
        if not told:
            print(
                f"{name}: torch compiles the net, for a minute or two where it has not done so before", file=sys.stderr
            )
            told = True
        try:
            return fast(images_BCHW)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            cause = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path}: found true; torch cannot compile here ({cause}); allowed is false, "
                "or true where a C++ compiler (CPU) or Triton (CUDA) is installed"
            ) from None

    return forward
