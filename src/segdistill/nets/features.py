"""Features that one network may learn from another."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class HasFeatures(Protocol):
    """A network with features to distil: those that its head classifies."""

    def features_and_logits(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """Return features_BCst, on a grid of s x t cells, and what the network itself returns."""
