"""The batches of a training, cut out of mapped arrays one step ahead of the arithmetic.

Shapes: B batch, H/W crop in pixels, h/w crop in logit cells (H / stride), C classes, K views per frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from segdistill.dataset import Split
from segdistill.rng import Batches, BatchPlan
from segdistill.transforms import cut, jittered, normalised


class CachedLogits(Protocol):
    """Stored teacher logits that a batch can be cut from."""

    def cut(self, plan: BatchPlan, origins: np.ndarray) -> np.ndarray:
        """Logits (B, h, w, C) of the planned crops, mirrored where the plan flips."""


class CropBatch(NamedTuple):
    """images uint8 (B, H, W, 3), labels uint8 (B, H, W), stored logits (B, h, w, C) or None, and their plan."""

    images: Tensor
    labels: Tensor
    logits: Tensor | None
    plan: BatchPlan

    def inputs(self, device: torch.device) -> Tensor:
        """What the net is fed: jittered and normalised floats (B, 3, H, W) on `device`."""
        images = self.images.to(device, non_blocking=True)
        # With jitter 0 every factor is exactly 1 and the crop stays what the teacher saw.
        return normalised(jittered(images, self.plan.colour) if (self.plan.colour != 1).any() else images)

    def targets(self, device: torch.device) -> Tensor:
        """Class of each pixel, int64 (B, H, W)."""
        return self.labels.to(device, non_blocking=True).long()

    def teacher_logits(self, device: torch.device) -> Tensor | None:
        """Stored logits as (B, C, h, w) floats."""
        return None if self.logits is None else self.logits.to(device, non_blocking=True).permute(0, 3, 1, 2)


class CropBatches:
    """Batch after batch of crops of a split.

    Args:
        split: the frames.
        batches: what goes into batch number `step`.
        origins: top-left corners of the views, int (N, K, 2) in pixels.
        crop_px: height and width of a crop.
        cached: stored teacher logits, or None.
        pinned: whether to stage batches in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        split: Split,
        batches: Batches,
        origins: np.ndarray,
        crop_px: tuple[int, int],
        cached: CachedLogits | None = None,
        pinned: bool = False,
    ) -> None:
        self.split, self.batches, self.origins, self.crop_px = split, batches, origins, crop_px
        self.cached, self.pinned = cached, pinned

    def load(self, step: int) -> CropBatch:
        """Batch number `step`."""
        plan = self.batches.plan(step)
        origins = self.origins[plan.frames, plan.views]
        images = np.empty((len(origins), *self.crop_px, 3), np.uint8)
        labels = np.empty((len(origins), *self.crop_px), np.uint8)
        for source, out in ((self.split.images, images), (self.split.labels, labels)):
            cut(source, plan.frames, origins, plan.flips, self.crop_px, out)
        logits = None if self.cached is None else torch.from_numpy(self.cached.cut(plan, origins))
        batch = CropBatch(torch.from_numpy(images), torch.from_numpy(labels), logits, plan)
        if self.pinned:
            batch = CropBatch(*(t.pin_memory() if isinstance(t, Tensor) else t for t in batch))
        return batch

    def names(self, step: int) -> list[str]:
        """Names of the frames in batch number `step`."""
        return [self.split.names[frame] for frame in self.batches.plan(step).frames]

    def steps(self, first: int, end: int) -> Iterator[tuple[int, CropBatch]]:
        """(step, batch) for steps `first` to `end` - 1; the next batch is cut while the caller works on this one."""
        if first >= end:
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crops") as pool:
            upcoming = pool.submit(self.load, first)
            for step in range(first, end):
                batch = upcoming.result()
                if step + 1 < end:
                    upcoming = pool.submit(self.load, step + 1)
                yield step, batch
