"""The batches of a training, cropped out of mapped arrays one step ahead of the arithmetic.

Shapes: B batch, H/W crop in pixels, h/w crop in logit cells (H / stride), C classes, K views per frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segdistill.data.arrays import drop_pages, prefetch
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchIndices, BatchSampler
from segdistill.data.teacher_cache import StoredCrops, StoredLogits
from segdistill.data.transfer import constant, to_device
from segdistill.data.transforms import crop, normalize
from segdistill.parallel import ranks
from segdistill.training.mixing import Mixed, Mixer

# Drop mapped pages after this many bytes, to bound resident memory; so rarely that it costs nothing.
DROP_AFTER_BYTES = 64 * 2**20
_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, as torchvision's rgb_to_grayscale


class CropBatch(NamedTuple):
    """Images uint8 (B, H, W, 3), labels uint8 (B, H, W), stored logits or None, and the draws of the batch.

    With several ranks it is the part of one rank, and the partner of its last crop may follow in logits and features.
    Where crops are mixed, images and labels are so already; `mixed` says where, and logits and features follow when
    they are taken. Colour jitter comes after mixing, one draw for a mixed image.
    """

    images: Tensor
    labels: Tensor
    logits: StoredCrops | None
    indices: BatchIndices
    mixed: Mixed | None = None
    features: StoredCrops | None = None

    def on(self, device: torch.device) -> CropBatch:
        """Return the batch with its images and labels on `device`; stored logits and features follow when taken."""
        return self._replace(images=to_device(self.images, device), labels=to_device(self.labels, device))

    def inputs(self, device: torch.device) -> Tensor:
        """Return the input of the network: jittered and normalised floats (B, 3, H, W) on `device`."""
        images = to_device(self.images, device)
        # With jitter 0 every factor is exactly 1, and the crop stays what the teacher saw.
        return normalize(color_jitter(images, self.indices.colour) if (self.indices.colour != 1).any() else images)

    def targets(self, device: torch.device) -> Tensor:
        """Return the class of each pixel, int64 (B, H, W)."""
        return to_device(self.labels, device).long()

    def teacher_logits(self, device: torch.device) -> Tensor | None:
        """Return the stored logits, float32 (B, C, h, w) on `device`, mixed as the images; None without."""
        return self._taken(self.logits, device)

    def teacher_features(self, device: torch.device) -> Tensor | None:
        """Return the stored features, float32 (B, D, s, t) on `device`, mixed as the images; None without."""
        return self._taken(self.features, device)

    def _taken(self, crops: StoredCrops | None, device: torch.device) -> Tensor | None:
        if crops is None:
            return None
        values = crops.floats(device)
        return values if self.mixed is None else self.mixed.mix(values)[: len(self.labels)]


class CropLoader:
    """Load batches of crops of a split.

    Args:
        split: the frames.
        batches: draws each batch.
        origins: top-left corners of the views, int (N, K, 2) in pixels.
        crop_px: height and width of a crop.
        cached: stored teacher logits, or None.
        pinned: whether to stage batches in page-locked memory, for a GPU.
        sizes: heights and widths of the views in their frames, int (N, K, 2) in pixels, where these are not crop_px.
        mixer: pastes parts of crops into others, or None.
        features: stored teacher features, or None.
        threads: crop so many parts of a batch at once. For a GPU, whose large batches one thread crops too slowly; on a
            CPU they would take cores from the training step.
    """

    def __init__(
        self,
        split: Split,
        batches: BatchSampler,
        origins: np.ndarray,
        crop_px: tuple[int, int],
        cached: StoredLogits | None = None,
        pinned: bool = False,
        sizes: np.ndarray | None = None,
        mixer: Mixer | None = None,
        features: StoredLogits | None = None,
        threads: int = 1,
    ) -> None:
        self.split, self.batches, self.origins, self.crop_px = split, batches, origins, crop_px
        self.cached, self.pinned, self.sizes, self.mixer, self.features = cached, pinned, sizes, mixer, features
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="parts") if threads > 1 else None
        self._bytes_read = 0

    def load(self, step: int) -> CropBatch:
        """Return batch number `step`, or this rank's part of it."""
        batch_size = self.batches.batch_size
        slots = np.arange(batch_size)[ranks.slots(batch_size)]
        own = len(slots)
        if self.mixer and ranks.count() > 1:  # the last crop may get a part of the next rank's first one
            slots = np.append(slots, (slots[-1] + 1) % batch_size)
        indices = self.batches.indices(step).part(slots)
        origins = self.origins[indices.frames, indices.views]
        sizes = np.broadcast_to(self.crop_px, origins.shape)
        if self.sizes is not None:
            sizes = self.sizes[indices.frames, indices.views]
        # Start all reads, then wait.
        for source in (self.split.images, self.split.labels):
            self._bytes_read += prefetch(source, indices.frames, origins[:, 0], sizes[:, 0])
        for cached in filter(None, (self.cached, self.features)):
            self._bytes_read += cached.prefetch(indices, origins)
        images = torch.empty((len(origins), *self.crop_px, 3), dtype=torch.uint8, pin_memory=self.pinned)
        labels = torch.empty((len(origins), *self.crop_px), dtype=torch.uint8, pin_memory=self.pinned)

        def read(part: slice) -> list[StoredCrops | None]:
            """Crop images and labels of some slots into place; return the stored logits and features of these."""
            drawn = indices.part(part)
            for source, out in ((self.split.images, images), (self.split.labels, labels)):
                crop(source, drawn.frames, origins[part], drawn.flips, sizes[part], out[part].numpy())
            return [
                None if cached is None else cached.crop(drawn, origins[part]) for cached in (self.cached, self.features)
            ]

        size = -(-len(origins) // self.threads)
        parts = [slice(first, first + size) for first in range(0, len(origins), size)]
        # Copying releases Python's lock, and a crop does not depend on the others.
        read_parts = list((map if self._pool is None else self._pool.map)(read, parts))
        logits, features = (_joined(crops, self.pinned) for crops in zip(*read_parts, strict=True))
        mixed = None
        if self.mixer:
            mixed = self.mixer.paste(step, images.numpy(), labels.numpy(), slots[0], batch_size)
        if own < len(slots):
            images, labels, indices = images[:own], labels[:own], indices.part(slice(own))
        if self._bytes_read > DROP_AFTER_BYTES:
            self.drop_pages()
        return CropBatch(images, labels, logits, indices, mixed, features)

    def drop_pages(self) -> None:
        """Drop the pages that were read from memory."""
        drop_pages(self.split.images)
        drop_pages(self.split.labels)
        for cached in filter(None, (self.cached, self.features)):
            cached.drop_pages()
        self._bytes_read = 0

    def names(self, step: int) -> list[str]:
        """Return the names of the frames in batch number `step`."""
        return [self.split.names[frame] for frame in self.batches.indices(step).frames]

    def steps(self, first: int, end: int) -> Iterator[tuple[int, CropBatch]]:
        """Yield (step, batch) for steps `first` to `end` - 1; the next batch loads while the caller uses this one."""
        if first >= end:
            return
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="crops") as pool:
            upcoming = pool.submit(self.load, first)
            for step in range(first, end):
                batch = upcoming.result()
                if step + 1 < end:
                    upcoming = pool.submit(self.load, step + 1)
                yield step, batch


def _joined(parts: Sequence[StoredCrops | None], pinned: bool) -> StoredCrops | None:
    """Return the parts of a batch as one, in page-locked memory if `pinned`."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    joined = there[0]
    if len(there) > 1:
        values, scales = zip(*there, strict=True)
        joined = StoredCrops(torch.cat(values), None if scales[0] is None else torch.cat(scales))
    return joined.pinned() if pinned else joined


def color_jitter(images_BHW3: Tensor, colour_B3: np.ndarray) -> Tensor:
    """Change brightness, then contrast, then saturation of uint8 RGB (B, H, W, 3) by the factors in `colour_B3`.

    torchvision's adjust_brightness, adjust_contrast and adjust_saturation on floats in 0..255, in this fixed order;
    rounded back to uint8 once, at the end.
    """
    factors = to_device(torch.as_tensor(colour_B3, dtype=torch.float32), images_BHW3.device)
    brightness, contrast, saturation = (factors[:, i].view(-1, 1, 1, 1) for i in range(3))
    luma = constant(_LUMA, torch.float32, images_BHW3.device)
    images = (images_BHW3.float() * brightness).clamp_(0, 255)
    mean = (images @ luma).mean(dim=(1, 2)).view(-1, 1, 1, 1)
    images = torch.lerp(mean, images, contrast).clamp_(0, 255)
    grey = (images @ luma).unsqueeze(-1)
    return torch.lerp(grey, images, saturation).clamp_(0, 255).round_().to(torch.uint8)
