"""A batch that several threads crop has the bytes of one that a single thread crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import StoredLogits
from segdistill.teacher_logits.writer import quantize
from segdistill.training.batches import CropLoader
from segdistill.training.mixing import Mixer
from support.tiny_training import CLASSES, CROP_PX, FRAMES, VIEWS, make_split, origins

BATCH = 5


def stored(stride: int, channels: int, dtype: str) -> StoredLogits:
    grid = (CROP_PX[0] // stride, CROP_PX[1] // stride)
    values = np.random.default_rng(stride).standard_normal((FRAMES * VIEWS, *grid, channels), np.float32)
    parts = quantize(values) if dtype == "uint8" else (values.astype(dtype), None)
    return StoredLogits(
        *(part if part is None else part.reshape(FRAMES, VIEWS, *part.shape[1:]) for part in parts), grid, stride
    )


def loader(threads: int, dtype: str = "uint8", **given) -> CropLoader:
    batches = BatchSampler(0, "distill", FRAMES, VIEWS, BATCH, 0.5, 0.0)
    logits, features = stored(4, CLASSES, dtype), stored(8, 6, "uint8")
    return CropLoader(make_split(), batches, origins(), CROP_PX, logits, features=features, threads=threads, **given)


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_threads_change_no_byte(threads, dtype):
    one, several = loader(1, dtype), loader(threads, dtype)
    for step in range(4):
        expected, found = one.load(step), several.load(step)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        for crops, expected_crops in ((found.logits, expected.logits), (found.features, expected.features)):
            assert torch.equal(crops.values, expected_crops.values)
            assert (crops.scale is None) == (expected_crops.scale is None)
            assert crops.scale is None or torch.equal(crops.scale, expected_crops.scale)


def test_threads_mix_the_same_crops():
    mixer = Mixer("cutmix", 1.0, 0, "distill", 4)
    expected, found = (loader(threads, mixer=mixer).load(0) for threads in (1, 3))
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.mixed.pasted, expected.mixed.pasted)


def test_an_error_in_a_thread_reaches_the_training():
    several = loader(3)
    several.cached = several.features  # of another grid: mixed up
    several.cached.crop = None
    with pytest.raises(TypeError):
        list(several.steps(0, 2))
