"""The exponential moving average of a network in training."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of a network: its weights, and the running statistics of its batch norms.

    average <- d * average + (1 - d) * network after each step, d = min(decay, (1 + step) / (10 + step)): the first
    steps of a training hardly count, however high the decay is. A batch norm's own running statistics follow the last
    few batches only; averaged over as many steps as the weights they need no estimate over further batches. What is no
    float (the count of batches that a batch norm has seen) is copied.

    Attributes:
        net: the average, a network of its own, in eval mode.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """Start from `net`, placed on its device."""
        self.net, self.decay = copy.deepcopy(net).eval().requires_grad_(False), decay
        # The tensors of both networks, once: they move and are loaded in place, and listing them costs each step more
        # than the arithmetic of a small network.
        self._averaged: list[Tensor] = []
        self._current: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        own, other = ([*one.parameters(), *one.buffers()] for one in (self.net, net))
        for average, current in zip(own, other, strict=True):
            if average.is_floating_point():
                self._averaged.append(average)
                self._current.append(current)
            else:
                self._copied.append((average, current))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the network after optimizer step `step`, counted from 0."""
        torch._foreach_lerp_(self._averaged, self._current, 1 - min(self.decay, (1 + step) / (10 + step)))
        for average, current in self._copied:
            average.copy_(current)
