"""A few full-size frames on disk, in both forms: the PNG files of Cityscapes, and the arrays that `prepare` writes.

Teacher logits are stored next to them as `teacher-logits` writes them. Their values are random, because the time of a
step does not depend on them.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.preparing import soften
from segdistill.data.prepared import PreparedData
from segdistill.data.sampling import ViewSpec
from segdistill.data.teacher_cache import (
    FEATURES,
    FEATURES_SCALE,
    Manifest,
    StoredLogits,
    stored_grid,
)
from segdistill.params.archs import FEATURE_STRIDE
from segdistill.params.model import DataParams, SyntheticParams
from segdistill.prepare.cityscapes import CLASSES, IMAGE_FOLDER, IMAGE_SUFFIX, LABEL_FOLDER, LABEL_SUFFIX, split_stem
from segdistill.prepare.run import prepare
from segdistill.prepare.synthetic.render import write_city
from segdistill.teacher_logits.writer import LogitsWriter, stored_shape

VIEWS, STRIDE = 2, 4


class Sizes(NamedTuple):
    """What a training reads: frames and crops as (height, width) in pixels, crops per step, train frames on disk."""

    frame_px: tuple[int, int]
    crop_px: tuple[int, int]
    batch: int
    frames: int = 8


ON_CPU = Sizes((1024, 2048), (256, 256), 4)
ON_GPU = Sizes((1024, 2048), (768, 768), 16)
QUICK = Sizes((256, 512), (64, 64), 4)


class Streets:
    """The train frames of the synthetic city under `folder`.

    png_pairs: (photograph, label ids) of each frame. data: the same frames, prepared; split: their train split.
    """

    def __init__(self, folder: Path, frame_px: tuple[int, int], frames: int) -> None:
        self.folder = folder
        city, prepared = folder / "cityscapes", folder / "prepared"
        # One frame more than needed, because `prepare` holds one out.
        write_city(city, seed=0, train_frames=frames + 1, val_frames=1, size_px=frame_px)
        soften(city)  # the usual loop decodes files of the size of Cityscapes' own
        unread = SyntheticParams(train_frames=1, val_frames=1)
        data = DataParams(
            source="cityscapes", root=str(city), size_px=None, holdout_fraction=1 / (frames + 1), synthetic=unread
        )
        prepare(data, seed=0, out=prepared, workers=1)
        self.data = PreparedData.open(prepared)
        self.split = self.data.train
        self.png_pairs = [
            (
                city / IMAGE_FOLDER / "train" / split_stem(stem)[0] / f"{stem}{IMAGE_SUFFIX}",
                city / LABEL_FOLDER / "train" / split_stem(stem)[0] / f"{stem}{LABEL_SUFFIX}",
            )
            for stem in self.split.names
        ]

    @property
    def png_bytes_per_frame(self) -> int:
        """Return the mean size of a photograph and its label file together."""
        return sum(file.stat().st_size for pair in self.png_pairs for file in pair) // len(self.png_pairs)

    def views(self, crop_px: tuple[int, int]) -> ViewSpec:
        """Return the spec of crop views of that size."""
        return ViewSpec.of(self.data, crop_px, VIEWS, STRIDE, seed=0)

    @functools.cache  # noqa: B019 - lives as long as the process that measures
    def stored_logits(self, crop_px: tuple[int, int], dtype: str) -> StoredLogits:
        """Return stored logits of crops of that size; their values are random."""
        folder, views = self.folder / f"teacher_logits_{crop_px[0]}x{crop_px[1]}_{dtype}", self.views(crop_px)
        folder.mkdir()
        shape = stored_shape("views", views, CLASSES)
        rng = np.random.default_rng(0)
        with LogitsWriter(folder, dtype, shape) as writer:
            for _ in range(len(self.split)):
                writer.append(4 * rng.standard_normal(shape[1:], np.float32))
        return StoredLogits.open(folder, Manifest("views", views, dtype, "no teacher", writer.arrays))

    @functools.cache  # noqa: B019 - as above
    def stored_features(self, crop_px: tuple[int, int], channels: int) -> StoredLogits:
        """Return stored features of crops of that size; their values are random."""
        folder, views = self.folder / f"teacher_features_{crop_px[0]}x{crop_px[1]}_{channels}", self.views(crop_px)
        folder.mkdir()
        shape = (views.frames, views.views, *stored_grid(crop_px, FEATURE_STRIDE), channels)
        rng = np.random.default_rng(0)
        with LogitsWriter(folder, "uint8", shape, names=(FEATURES, FEATURES_SCALE)) as writer:
            for _ in range(len(self.split)):
                writer.append(rng.standard_normal(shape[1:], np.float32))
        manifest = Manifest("views", views, "uint8", "no teacher", writer.arrays)
        return StoredLogits.open(folder, manifest, features=True)


@functools.cache
def streets_on_disk(frame_px: tuple[int, int], frames: int) -> Streets:
    """Return frames in a temporary folder that all parts of one measurement share; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="segdistill-bench-")
    streets = Streets(Path(folder.name), frame_px, frames)
    streets.temporary = folder
    return streets
