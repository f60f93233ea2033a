"""One shard of the cache: run the teacher over its windows, and write logits and features.

Shapes: B crops, N frames, K views, H/W pixels, h/w cells of the stored grid, C classes, s/t cells and D channels of
features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.progress import Progress
from segdistill.data.prepared import Split
from segdistill.data.sampling import ViewSpec
from segdistill.data.shards import shards_of
from segdistill.data.teacher_cache import FEATURES, FEATURES_SCALE, stored_grid
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.resize import upsample
from segdistill.parallel import ranks
from segdistill.params.archs import FEATURE_STRIDE
from segdistill.params.model import TeacherLogitsParams
from segdistill.teacher.model import Teacher, TrainFrameTeacher
from segdistill.teacher_logits.accuracy import TeacherAccuracy
from segdistill.teacher_logits.features import ProjectedFeatures, Projection
from segdistill.teacher_logits.overlap import Overlap
from segdistill.teacher_logits.windows import Windows, read_crops
from segdistill.teacher_logits.writer import LogitsWriter, stored_shape

COUNTS = "counts.npz"  # in the folder of a finished shard: what `TeacherAccuracy` counted on it


class Contents(NamedTuple):
    """What a cache holds: windows of the train frames, and what is stored of each.

    Attributes:
        windows: in the order of their frames.
        size_px: of the image of a window, as the teacher gets it.
        stored: which views the windows are, bool (N, K), or (N, 2 K) with the mirrored ones; None for all of them, or
            whole frames.
        mirror_error: as in `Manifest`.
        projection: of the features, where they are stored.
    """

    kind: str
    windows: Windows
    size_px: tuple[int, int]
    batch_size: int
    stored: np.ndarray | None = None
    mirrored: bool = False
    mirror_error: dict[str, float] | None = None
    projection: Projection | None = None


class Batch(NamedTuple):
    """What the teacher gives for a batch of windows.

    Attributes:
        frames: (B,)
        labels: uint8 (B, H, W)
        logits: float32 (B, h, w, C)
        features: float32 (B, s, t, D), projected; None where none are stored.
    """

    frames: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    features: np.ndarray | None


class ShardBuilder:
    """Run the teacher over the windows of a cache, shard by shard, and write each into a folder.

    Attributes:
        frames: the train frames of each shard.
        starts: the first window of each shard, and the number of all windows.
    """

    def __init__(
        self,
        contents: Contents,
        teacher: Teacher,
        learned_from: TrainFrameTeacher,
        split: Split,
        spec: ViewSpec,
        params: TeacherLogitsParams,
        compute: Compute,
        accuracy: TeacherAccuracy | None,
    ) -> None:
        self._contents, self._learned_from = contents, learned_from
        self._split, self._spec, self._params, self._accuracy = split, spec, params, accuracy
        self._classes, self._is_cuda = teacher.classes, compute.device.type == "cuda"
        self._with_features: ProjectedFeatures | None = None
        if contents.projection is not None:
            assert isinstance(teacher.predict, TorchPredictor)
            self._with_features = ProjectedFeatures(teacher.predict, contents.projection)
        self.frames = shards_of(spec.frames)
        ends = [0, *(frames.stop for frames in self.frames)]
        self.starts: list[int] = np.searchsorted(contents.windows.frames, ends).tolist()

    def results(self, number: int) -> Iterator[Batch]:
        """Run the teacher on a shard; yield its batches, on the first rank."""
        size_px, batch_size = self._contents.size_px, self._contents.batch_size
        own = Windows(*(part[self.starts[number] : self.starts[number + 1]] for part in self._contents.windows))
        grid = stored_grid(size_px, self._spec.stride)

        def computed() -> Iterator[Batch]:
            with Overlap(active=self._is_cuda) as reading:
                batches = read_crops(self._split, own, size_px, batch_size, shared=True)
                for frames, images, labels in reading.ahead(batches):
                    logits = logits_on_grid(self._with_features or self._learned_from.of(frames), images, grid)
                    features = None if self._with_features is None else self._with_features.last
                    yield Batch(frames, labels, logits, features)

        return ranks.in_order(computed(), -(-len(own.frames) // batch_size))

    def write(self, folder: Path, number: int, progress: Progress) -> None:
        """Write the files of a shard.

        Raises:
            UserError: a logit or a feature is not finite in the stored precision.
        """
        contents, frames, dtype = self._contents, self.frames[number], self._params.dtype
        stored = None if contents.stored is None else contents.stored[frames.start : frames.stop]
        of_shard = replace(self._spec, frames=len(frames))
        shape = stored_shape(contents.kind, of_shard, self._classes, stored, contents.mirrored)
        with contextlib.ExitStack() as files:
            logits_writer = files.enter_context(LogitsWriter(folder, dtype, shape, number))
            if contents.projection is not None:
                grid, names = stored_grid(contents.size_px, FEATURE_STRIDE), (FEATURES, FEATURES_SCALE)
                of_features = (*shape[:-3], *grid, self._params.feature_channels)
                features_writer = files.enter_context(LogitsWriter(folder, "uint8", of_features, number, names))

            def store(batch: Batch) -> None:
                if batch.features is not None and not features_writer.append(batch.features).all():
                    raise UserError("teacher: a feature is not finite as uint8; no cache written")
                finite = logits_writer.append(batch.logits)
                if not finite.all():
                    name = self._split.names[batch.frames[finite.argmin()]]
                    raise UserError(f"teacher: a logit of frame {name} is not finite as {dtype}; no cache written")
                if self._accuracy is not None:
                    self._accuracy.add(batch.frames, batch.labels, batch.logits)

            with Overlap(active=self._is_cuda) as writing:
                for batch in self.results(number):
                    writing.then(store, batch)
                    progress.advance(len(batch.frames))
        if self._accuracy is not None:
            self._accuracy.save_shard(folder / COUNTS, frames)


class LogitsOf(Protocol):
    """A teacher."""

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w) of uint8 images (B, H, W, 3)."""


@torch.inference_mode()
def logits_on_grid(teacher: LogitsOf, images_BHW3: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the teacher's logits float32 (B, *grid, C) of uint8 crops, resized where its own grid is another."""
    logits = teacher.logits(images_BHW3)
    if tuple(logits.shape[-2:]) != tuple(grid):
        logits = upsample(logits, grid)
    return logits.permute(0, 2, 3, 1).cpu().numpy()
