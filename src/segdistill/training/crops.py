"""The batches of a training, cut out of mapped arrays one step ahead of the arithmetic.

Shapes: B batch, H/W crop in pixels, h/w crop in logit cells (H / stride), C classes, K views per frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segdistill.frames.dataset import Split
from segdistill.frames.mapped import release, will_read
from segdistill.frames.rng import Batches, BatchPlan
from segdistill.frames.transforms import cut, jittered, normalised
from segdistill.logits.stored_logits import StoredCrops, StoredLogits

# Once so many bytes were read, the pages they lie in leave the memory of this process: rarely enough to cost nothing.
RELEASE_AFTER_BYTES = 64 * 2**20


class CropBatch(NamedTuple):
    """images uint8 (B, H, W, 3), labels uint8 (B, H, W), stored logits or None, and their plan."""

    images: Tensor
    labels: Tensor
    logits: StoredCrops | None
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
        """Stored logits, float32 (B, C, h, w) on `device`; None without."""
        return None if self.logits is None else self.logits.floats(device)


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
        cached: StoredLogits | None = None,
        pinned: bool = False,
    ) -> None:
        self.split, self.batches, self.origins, self.crop_px = split, batches, origins, crop_px
        self.cached, self.pinned = cached, pinned
        self._unreleased_bytes = 0

    def load(self, step: int) -> CropBatch:
        """Batch number `step`."""
        plan = self.batches.plan(step)
        origins = self.origins[plan.frames, plan.views]
        # All is asked for before any of it is waited for.
        self._unreleased_bytes += self._will_read(plan, origins)
        images = torch.empty((len(origins), *self.crop_px, 3), dtype=torch.uint8, pin_memory=self.pinned)
        labels = torch.empty((len(origins), *self.crop_px), dtype=torch.uint8, pin_memory=self.pinned)
        for source, out in ((self.split.images, images), (self.split.labels, labels)):
            cut(source, plan.frames, origins, plan.flips, self.crop_px, out.numpy())
        logits = None if self.cached is None else self.cached.cut(plan, origins)
        if self._unreleased_bytes > RELEASE_AFTER_BYTES:
            self.release()
        return CropBatch(images, labels, logits.pinned() if logits and self.pinned else logits, plan)

    def _will_read(self, plan: BatchPlan, origins: np.ndarray) -> int:
        frames = (self.split.images, self.split.labels)
        spanned = sum(will_read(source, plan.frames, origins[:, 0], self.crop_px[0]) for source in frames)
        return spanned + (self.cached.will_read(plan, origins) if self.cached else 0)

    def release(self) -> None:
        """Give back the memory in which the pages that were read lie."""
        release(self.split.images)
        release(self.split.labels)
        if self.cached:
            self.cached.release()
        self._unreleased_bytes = 0

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
