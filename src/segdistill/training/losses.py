"""The losses of a training between two points of its curve, which stay on a GPU until they are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

MAX_UNREAD = 1000  # steps; a loss that is not finite is found that late at most


class LossSums:
    """Sums of (loss, label loss, distillation loss) of steps; the host waits for a GPU only when they are read.

    Args:
        sums: float64 (3,) in main memory, to begin with.
        refuse: called with the step and the loss of the first step whose loss is not finite.
    """

    def __init__(self, sums: Tensor, refuse: Callable[[int, float], NoReturn]) -> None:
        self._sums, self._refuse = sums, refuse
        self._unread: list[tuple[int, Tensor]] = []

    def add(self, step: int, losses: Tensor) -> None:
        """Add the losses (3,) of a step, which need not be computed yet."""
        self._unread.append((step, losses))
        if len(self._unread) == MAX_UNREAD:
            self.read()

    def read(self) -> Tensor:
        """Return the sums, float64 (3,), added in the order of the steps, so that reading more often changes no bit."""
        if self._unread:
            steps, losses = zip(*self._unread, strict=True)
            for step, row in zip(steps, torch.stack(losses).double().cpu(), strict=True):
                if not math.isfinite(row[0]):
                    self._refuse(step, float(row[0]))
                self._sums += row
            self._unread.clear()
        return self._sums

    def reset(self) -> None:
        """Begin with zeros again, after reading."""
        assert not self._unread
        self._sums.zero_()
