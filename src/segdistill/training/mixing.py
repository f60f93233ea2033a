"""CutMix and ClassMix: parts of one cached crop pasted into another, with their labels and teacher logits.

A cache has a fixed set of crops, on which a long training overfits (Beyer et al., arXiv:2106.05237). Mixing makes new
images of them, and their logits are known: each place keeps those of the crop that it came from.

Shapes: B batch, H/W crop in pixels, h/w cells of a grid over the crop, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segdistill.data.sampling import generator
from segdistill.data.transfer import to_device
from segdistill.formats.classes import IGNORE


class Mixed(NamedTuple):
    """Where the crops of a batch hold a part of another: their partners int64 (B,), and the pasted pixels (B, H, W)."""

    partners: Tensor
    pasted: Tensor

    def mix(self, values_BChw: Tensor) -> Tensor:
        """Return values of the unmixed crops, on a grid of cells of whole pixels, mixed as the pixel at each centre."""
        device, (height, width) = values_BChw.device, values_BChw.shape[-2:]
        rows, columns = self.pasted.shape[1] // height, self.pasted.shape[2] // width
        cells_Bhw = to_device(self.pasted[:, rows // 2 :: rows, columns // 2 :: columns], device)
        partners = to_device(self.partners, device)
        return torch.where(cells_Bhw.unsqueeze(1), values_BChw[partners], values_BChw)


class Mixer:
    """Paste a part of the next crop of a batch into each chosen one; into the last one a part of the first.

    cutmix: a rectangle in the shape of the crop, at a random place, whose share of the area is uniform (Yun et al.,
    arXiv:1905.04899; for segmentation French et al., arXiv:1906.01916). It consists of whole cells of the logits' grid,
    so that logits mix exactly.
    classmix: the pixels of half of the classes in the label of the next crop (Olsson et al., arXiv:2007.07936).

    All draws are functions of (seed, phase, step).
    """

    def __init__(self, kind: str, probability: float, seed: int, phase: str, stride: int) -> None:
        """Mix by `kind`, cutmix or classmix; `probability` is that of each crop, `stride` the pixels of a cell."""
        self.kind, self.probability, self.seed, self.phase, self.stride = kind, probability, seed, phase, stride

    def paste(
        self,
        step: int,
        images_BHW3: np.ndarray,
        labels_BHW: np.ndarray,
        first_slot: int = 0,
        batch_size: int | None = None,
    ) -> Mixed:
        """Mix images and labels of batch number `step` in place; return where.

        A part of a batch of `batch_size` starts at `first_slot`, and ends with the partner of its last crop.
        """
        batch_size = batch_size or len(labels_BHW)
        slots = np.arange(first_slot, first_slot + len(labels_BHW)) % batch_size
        partners = np.roll(np.arange(len(labels_BHW)), -1)
        pasted = self._pasted(step, labels_BHW[partners], slots, batch_size)
        # A pixel of three bytes as one element: with a channel axis NumPy takes 15 times as long.
        for crops in (images_BHW3.view("V3")[..., 0], labels_BHW):
            np.copyto(crops, crops[partners], where=pasted)
        return Mixed(torch.from_numpy(partners), torch.from_numpy(pasted))

    def _pasted(self, step: int, labels_BHW: np.ndarray, slots: np.ndarray, batch_size: int) -> np.ndarray:
        """Return the pixels that each crop takes from its partner, whose label is given, bool (B, H, W)."""
        draws, pasted = generator(self.seed, f"{self.phase} mix", step), np.zeros(labels_BHW.shape, bool)
        is_chosen = draws.random(batch_size)[slots] < self.probability
        if self.kind == "cutmix":
            cells = np.array(pasted.shape[1:]) // self.stride
            for slot, (share, *place) in enumerate(draws.random((batch_size, 3))[slots]):
                size = np.rint(np.sqrt(share) * cells).astype(int)
                top, left = (place * (cells - size + 1)).astype(int) * self.stride
                bottom, right = (top, left) + size * self.stride
                pasted[slot, top:bottom, left:right] = is_chosen[slot]
        else:
            for slot, order in enumerate(draws.random((batch_size, IGNORE))[slots]):
                present = np.flatnonzero(np.bincount(labels_BHW[slot].ravel(), minlength=IGNORE)[:IGNORE])
                is_taken = np.zeros(256, bool)
                is_taken[present[np.argsort(order[present])][: len(present) // 2]] = is_chosen[slot]
                pasted[slot] = is_taken[labels_BHW[slot]]
        return pasted
