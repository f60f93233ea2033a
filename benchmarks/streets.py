"""A few full-size frames on disk, in both forms: the PNG files of Cityscapes, and what `prepare` makes of them.

Logits lie beside them as `teacher-logits` writes them; their values are random, because the time of a step does not
depend on them.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.preparing import softened
from segdistill.data.prepared import open_split, read_index
from segdistill.data.teacher_cache import LogitsWriter, StoredLogits, geometry, stored_shape
from segdistill.params.model import DataParams, SyntheticParams
from segdistill.prepare.cityscapes import CLASSES, IMAGE_FOLDER, IMAGE_SUFFIX, LABEL_FOLDER, LABEL_SUFFIX, split_stem
from segdistill.prepare.run import prepare
from segdistill.prepare.synthetic.render import write_city

VIEWS, STRIDE = 2, 4


class Sizes(NamedTuple):
    """What is trained on: frames and crops as (height, width) in pixels, crops per step, train frames on disk."""

    frame_px: tuple[int, int]
    crop_px: tuple[int, int]
    batch: int
    frames: int = 8


ON_CPU = Sizes((1024, 2048), (256, 256), 4)
ON_GPU = Sizes((1024, 2048), (768, 768), 16)
QUICK = Sizes((256, 512), (64, 64), 4)


class Streets:
    """The train frames of the synthetic city under `folder`.

    png_pairs: (photograph, label ids) of each frame. split: the same frames, prepared.
    """

    def __init__(self, folder: Path, frame_px: tuple[int, int], frames: int) -> None:
        self.folder = folder
        city, prepared = folder / "cityscapes", folder / "prepared"
        # One frame more than asked for, because `prepare` holds one out.
        write_city(city, seed=0, train_frames=frames + 1, val_frames=1, size_px=frame_px)
        softened(city)  # the usual loop decodes files of the size of Cityscapes' own
        unread = SyntheticParams(train_frames=1, val_frames=1)
        data = DataParams(
            source="cityscapes", root=str(city), size_px=None, holdout_fraction=1 / (frames + 1), synthetic=unread
        )
        prepare(data, seed=0, out=prepared, workers=1)
        self.split, self.fingerprint = open_split("train", prepared), read_index(prepared)["fingerprint"]
        self.png_pairs = [_pngs(city, name) for name in self.split.names]

    @property
    def png_bytes_per_frame(self) -> int:
        """Mean size of a photograph and its label file together."""
        return sum(file.stat().st_size for pair in self.png_pairs for file in pair) // len(self.png_pairs)

    def facts(self, crop_px: tuple[int, int]) -> dict:
        """What the crop views are a function of."""
        return geometry(self.split, self.fingerprint, 0, crop_px, VIEWS, STRIDE)

    def stored_logits(self, crop_px: tuple[int, int], dtype: str = "float16") -> StoredLogits:
        """Stored logits of crops of that size; their values are random."""
        return self._stored_logits(crop_px, dtype)

    @functools.cache  # noqa: B019 - lives as long as the process that measures
    def _stored_logits(self, crop_px: tuple[int, int], dtype: str) -> StoredLogits:
        folder = self.folder / f"teacher_logits_{crop_px[0]}x{crop_px[1]}_{dtype}"
        folder.mkdir()
        shape = stored_shape("views", self.facts(crop_px), CLASSES)
        rng = np.random.default_rng(0)
        with LogitsWriter(folder, dtype, shape) as writer:
            for _ in range(len(self.split)):
                writer.append(4 * rng.standard_normal(shape[1:], np.float32))
        return StoredLogits.open(folder, writer.arrays, shape[2:4], STRIDE)


def _pngs(city: Path, stem: str) -> tuple[Path, Path]:
    pair = (IMAGE_FOLDER, IMAGE_SUFFIX), (LABEL_FOLDER, LABEL_SUFFIX)
    return tuple(city / folder / "train" / split_stem(stem)[0] / f"{stem}{suffix}" for folder, suffix in pair)


@functools.cache
def streets_on_disk(frame_px: tuple[int, int], frames: int) -> Streets:
    """Frames in a temporary folder that all parts of one measurement share; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="segdistill-bench-")
    streets = Streets(Path(folder.name), frame_px, frames)
    streets.temporary = folder
    return streets
