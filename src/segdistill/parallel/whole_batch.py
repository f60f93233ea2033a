"""A network whose training step over the ranks is that of one process over the whole batch.

Shapes: B crops of the whole batch, b of one rank, C channels, H/W cells.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from segdistill.parallel import ranks


class _Forward(nn.Module):
    """A function of a network, such as a method, as the module that DistributedDataParallel takes."""

    def __init__(self, net: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, images_bCHW: Tensor) -> Any:
        """Return what the function returns."""
        return self.function(images_bCHW)


def data_parallel(net: nn.Module, function: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return a function of `net`, after whose backward pass each gradient is its mean over the ranks."""
    if ranks.count() == 1:
        return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of another name, which older versions do not know
        # Buffers are those of batch norm, equal on all ranks without being sent around.
        return DistributedDataParallel(_Forward(net, function), broadcast_buffers=False)


@contextlib.contextmanager
def whole_batch_layers(net: nn.Module) -> Iterator[None]:
    """Let batch norm and dropout in `net` see the batch of all ranks, until the body ends."""
    if ranks.count() == 1:
        yield
        return
    changed = [(module, type(module)) for module in net.modules() if isinstance(module, _BatchNorm | nn.Dropout)]
    for module, given in changed:  # parameters, attributes and names of submodules stay
        module.__class__ = _BatchNormOverRanks if issubclass(given, _BatchNorm) else _DropoutOverRanks
    try:
        yield
    finally:
        for module, given in changed:
            module.__class__ = given


class _BatchNormOverRanks(nn.SyncBatchNorm):
    """nn.SyncBatchNorm, which takes GPUs alone, with a way of its own on CPUs."""

    process_group = None  # all ranks

    def forward(self, x_bCHW: Tensor) -> Tensor:
        """Return the normalised batch, and for timm's batch norms also what they do next."""
        on_cpu = self.training and x_bCHW.device.type == "cpu"
        normalised = self._on_cpu(x_bCHW) if on_cpu else super().forward(x_bCHW)
        for name in ("drop", "act"):  # of timm's BatchNormAct2d
            normalised = getattr(self, name)(normalised) if hasattr(self, name) else normalised
        return normalised

    def _on_cpu(self, x_bCHW: Tensor) -> Tensor:
        """Return the batch normalised by mean and variance over all ranks, and move the running ones.

        A network of the user's own may have batch norm without weights or running values, or of (b, C) alone.
        """
        x = x_bCHW.to(torch.promote_types(x_bCHW.dtype, torch.float32))
        over, by_channel = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        cells = x.numel() // x.shape[1] * ranks.count()
        mean_C = _SumOverRanks.apply(x.sum(over)) / cells
        centred = x - mean_C.view(by_channel)
        var_C = _SumOverRanks.apply((centred * centred).sum(over)) / cells
        if self.running_mean is not None:
            assert self.running_var is not None and self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                # Without a momentum the running values are means over all batches.
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean_C, momentum)
                self.running_var.lerp_(var_C * (cells / max(cells - 1, 1)), momentum)
        scale_C = torch.rsqrt(var_C + self.eps)
        if self.weight is None:
            return (centred * scale_C.view(by_channel)).to(x_bCHW.dtype)
        scale_C = self.weight * scale_C
        return (centred * scale_C.view(by_channel) + self.bias.view(by_channel)).to(x_bCHW.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum over all ranks: each part moves the losses of all, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


class _DropoutOverRanks(nn.Dropout):
    """Dropout whose draws are those of the whole batch: all ranks have the same seed, and take their part."""

    def forward(self, x_bCHW: Tensor) -> Tensor:
        """Return the part of this rank."""
        if not self.training or not self.p:
            return super().forward(x_bCHW)
        channels_last = x_bCHW.is_contiguous(memory_format=torch.channels_last)
        ones_BCHW = x_bCHW.new_ones((len(x_bCHW) * ranks.count(), *x_bCHW.shape[1:])).contiguous(
            memory_format=torch.channels_last if channels_last else torch.contiguous_format  # draws follow memory
        )
        return x_bCHW * F.dropout(ones_BCHW, self.p)[ranks.slots(len(ones_BCHW))]
