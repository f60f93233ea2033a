"""A teacher of several parts: networks of any kind, each asked at several scales and on the mirrored image.

What is averaged is the softmax of each prediction, not its logits: the usual way of multi-scale and flipped evaluation
in segmentation and of ensembles to distil from, and one in which no member counts for more because its logits are
larger. The students' losses want logits, so the mean is given as logits again: its logarithm, raised by the mean level
(logsumexp) of the predictions. Of a single prediction that is its own logits.

Shapes: B batch, H/W image in pixels, C classes, h/w a grid of logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.base.errors import InputError
from segdistill.nets.resize import upsample
from segdistill.scoring.pixels import classes_of

CELL_PX = 4  # of the grid on which predictions of different grids are averaged: the finest that our networks have


class Member(Protocol):
    """One network: uint8 images (B, H, W, 3) in, logits float32 (B, C, h, w) on its own grid out."""

    def logits(self, images_BHW3: np.ndarray) -> Tensor: ...


class CompositeTeacher:
    """The members as one Predictor. A single member, asked once, is given through as it is."""

    def __init__(self, members: Sequence[Member], flip: bool, scales: Sequence[float], device: torch.device) -> None:
        self.members, self.flip, self.scales, self.device = members, flip, scales, device

    @torch.inference_mode()
    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """What the teacher says, float32 (B, C, h, w)."""
        predictions = len(self.members) * len(self.scales) * (1 + self.flip)
        if predictions == 1 and self.scales[0] == 1:
            return asked(self.members[0], images_BHW3).to(self.device)
        grid = _cells(images_BHW3)
        mean = MeanPrediction()
        for logits in self._predictions(images_BHW3):
            mean.add(logits if tuple(logits.shape[-2:]) == grid else upsample(logits, grid))
        return mean.logits()

    def __call__(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        logits = self.logits(images_BHW3)
        return logits, classes_of(logits, images_BHW3.shape[1:3])

    def _predictions(self, images_BHW3: np.ndarray) -> Iterator[Tensor]:
        for scale in self.scales:
            scaled = resized(images_BHW3, scale)
            for member in self.members:
                yield asked(member, scaled).to(self.device)
                if self.flip:
                    mirrored = np.ascontiguousarray(scaled[:, :, ::-1])
                    yield asked(member, mirrored).to(self.device).flip(-1)


class MeanPrediction:
    """The mean of the softmax of logits (B, C, h, w) added one after another, as logits."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, logits_BChw: Tensor) -> None:
        level_B1hw = logits_BChw.logsumexp(1, keepdim=True)
        log_shares_BChw = logits_BChw - level_B1hw
        if self._count:
            log_shares_BChw, level_B1hw = torch.logaddexp(self._log_sum, log_shares_BChw), self._level + level_B1hw
        self._log_sum, self._level, self._count = log_shares_BChw, level_B1hw, self._count + 1

    def logits(self) -> Tensor:
        return self._log_sum - float(np.log(self._count)) + self._level / self._count


def resized(images_BHW3: np.ndarray, scale: float) -> np.ndarray:
    """The uint8 images at another scale, each side rounded to whole pixels; all pixels count, as in prepare."""
    if scale == 1:
        return images_BHW3
    size_px = [max(1, round(side * scale)) for side in images_BHW3.shape[1:3]]
    planes = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, size=size_px, mode="bilinear", align_corners=False, antialias=True)
    return planes.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def asked(member: Member, images_BHW3: np.ndarray) -> Tensor:
    """The member's logits; where it takes one size only, and the images have another, window by window.

    Windows overlap where they do not divide the image; there, as usual, their logits are averaged.

    Raises:
        InputError: the images are smaller than the one size that the member takes.
    """
    size_px = getattr(member, "size_px", None)
    if size_px is None or size_px == images_BHW3.shape[1:3]:
        return member.logits(images_BHW3)
    found = list(images_BHW3.shape[1:3])
    if any(side % CELL_PX for side in size_px) or any(np.less(found, size_px)):
        raise InputError(
            f"teacher.checkpoint: {member.name}: takes images of {list(size_px)} pixels only, and got {found}; allowed "
            f"are sides of at least its own, which are to be multiples of {CELL_PX} (distill.crop_px, teacher.scales)"
        )
    rows, columns = (-side % CELL_PX for side in found)  # windows lie on whole cells
    padded = np.pad(images_BHW3, ((0, 0), (0, rows), (0, columns), (0, 0)), "edge")
    (high, wide), window = _cells(padded), tuple(side // CELL_PX for side in size_px)
    sums, counts = torch.zeros(()), torch.zeros(())
    for top_px in _starts(padded.shape[1], size_px[0]):
        for left_px in _starts(padded.shape[2], size_px[1]):
            part = padded[:, top_px : top_px + size_px[0], left_px : left_px + size_px[1]]
            top, left = top_px // CELL_PX, left_px // CELL_PX
            around = (left, wide - left - window[1], top, high - top - window[0])
            sums = sums + F.pad(upsample(member.logits(np.ascontiguousarray(part)), window), around)
            counts = counts + F.pad(torch.ones(window), around)
    return sums / counts


def _starts(side_px: int, window_px: int) -> list[int]:
    """Where windows begin that cover a side, evenly spread on whole cells."""
    steps = -(-side_px // window_px) - 1
    room = (side_px - window_px) // CELL_PX
    return sorted({room * step // max(steps, 1) * CELL_PX for step in range(steps + 1)})


def _cells(images_BHW3: np.ndarray) -> tuple[int, int]:
    return tuple(-(-side // CELL_PX) for side in images_BHW3.shape[1:3])
