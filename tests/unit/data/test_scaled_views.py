"""Scaled views: the teacher and the student see the same bytes, flipped or not, and its logits are read with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import TeacherCache
from segdistill.teacher.model import Teacher
from segdistill.teacher_logits import build
from segdistill.training.batches import CropLoader
from support.cached_teacher import COMPUTE, CROP_PX, FRAMES, STRIDE, VIEWS, logits_params

pytestmark = pytest.mark.usefixtures("one_thread")


class PixelTeacher:
    """Gives what it sees: its logits are the colours of one pixel of each cell."""

    def logits(self, images_BHW3: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images_BHW3[:, ::STRIDE, ::STRIDE].astype(np.float32)).permute(0, 3, 1, 2)


@pytest.fixture
def cache_of(opened, tmp_path, monkeypatch):
    """Build a float32 cache of what the teacher saw, of views in a range of scales."""
    monkeypatch.setattr(build, "open_teacher", lambda *_: Teacher(PixelTeacher(), 3, None, "pixels"))

    def cache_of(scale_range: tuple[float, float]) -> TeacherCache:
        spec = replace(opened.spec, scale_range=scale_range)
        build.build_cache("views", tmp_path / "views", opened.split, spec, logits_params("float32"), COMPUTE)
        return TeacherCache("views", spec, tmp_path / "views")

    return cache_of


def loader_of(opened, cache: TeacherCache, flip_probability: float) -> CropLoader:
    batches = BatchSampler(0, "distill", FRAMES, VIEWS, 6, flip_probability, 0.0)
    spec = cache.spec
    return CropLoader(opened.split, batches, spec.origins(), CROP_PX, cache.stored, sizes=spec.sizes())


@pytest.mark.parametrize("flip_probability", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.7, 0.9), (0.5, 2.0), (2.0, 4.0)])
def test_student_sees_the_bytes_that_the_teacher_saw(opened, cache_of, scale_range, flip_probability):
    loader = loader_of(opened, cache_of(scale_range), flip_probability)
    for step in range(3):
        batch = loader.load(step)
        images, seen = batch.images.numpy(), batch.teacher_logits(COMPUTE.device).permute(0, 2, 3, 1).numpy()
        for image, logits, flip in zip(images, seen, batch.indices.flips, strict=True):
            if flip:
                image, logits = image[:, ::-1], logits[:, ::-1]
            assert np.array_equal(logits, image[::STRIDE, ::STRIDE])
            assert image.std() > 10


def test_labels_of_scaled_views_are_classes_of_their_window(opened, cache_of):
    cache = cache_of((0.5, 2.0))
    batch, spec = loader_of(opened, cache, 0.0).load(0), cache.spec
    for label, frame, view in zip(batch.labels.numpy(), batch.indices.frames, batch.indices.views, strict=True):
        (top, left), (height, width) = spec.origins()[frame, view], spec.sizes()[frame, view]
        window = opened.split.labels[frame, top : top + height, left : left + width]
        rows = ((np.arange(CROP_PX[0]) + 0.5) * height / CROP_PX[0]).astype(int)
        columns = ((np.arange(CROP_PX[1]) + 0.5) * width / CROP_PX[1]).astype(int)
        assert np.array_equal(label, window[np.ix_(rows, columns)])


def test_rows_of_scaled_views_are_counted_as_they_are_read(opened, cache_of):
    cache = cache_of((2.0, 2.0))
    loader = loader_of(opened, replace_stored(cache), 0.0)
    loader.load(0)
    row_bytes = sum(array.shards[0].strides[1] for array in opened.split[:2])
    assert loader._bytes_read == 6 * CROP_PX[0] // 2 * row_bytes


def replace_stored(cache: TeacherCache) -> TeacherCache:
    """Return the cache without logits, whose bytes would count as well."""
    cache.stored = None
    return cache
