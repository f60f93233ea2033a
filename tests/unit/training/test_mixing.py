"""CutMix and ClassMix: image, label and logits of a place come from one crop; draws are functions of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import StoredLogits
from segdistill.formats.classes import IGNORE
from segdistill.teacher_logits.writer import quantize
from segdistill.training.batches import CropLoader
from segdistill.training.mixing import Mixed, Mixer
from support.tiny_training import (
    CLASSES,
    CROP_PX,
    FRAMES,
    VIEWS,
    TinyNet,
    distilled,
    make_job,
    make_split,
    origins,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
KINDS = ["cutmix", "classmix"]
BATCH, STRIDE = 4, 4


def mixer_of(kind: str, probability=1.0, seed=0, phase="distill") -> Mixer:
    return Mixer(kind, probability, seed, phase, STRIDE)


def labels_of(batch=BATCH, size_px=(32, 48), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, (batch, *size_px), np.uint8)


def pasted(mixer: Mixer, step: int, labels: np.ndarray) -> np.ndarray:
    """Return which pixels each crop gets from the next one."""
    return mixer.paste(step, np.zeros((*labels.shape, 3), np.uint8), labels.copy()).pasted.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_mixing_is_a_function_of_seed_phase_and_step(kind):
    labels, mixer = labels_of(), mixer_of(kind)
    ahead = [pasted(mixer, step, labels) for step in range(4)]
    back = [pasted(mixer_of(kind), step, labels) for step in reversed(range(4))][::-1]
    assert np.array_equal(ahead, back)
    others = [pasted(mixer_of(kind, seed=1), 0, labels), pasted(mixer_of(kind, phase="finetune"), 0, labels), ahead[1]]
    assert not any(np.array_equal(ahead[0], other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_is_that_of_one_crop_in_image_and_label(kind):
    labels, images = labels_of(), np.random.default_rng(1).integers(0, 256, (BATCH, 32, 48, 3), np.uint8)
    mixed_images, mixed_labels = images.copy(), labels.copy()
    mixed = mixer_of(kind).paste(2, mixed_images, mixed_labels)
    assert mixed.partners.tolist() == [1, 2, 3, 0]
    assert 0 < mixed.pasted.float().mean() < 1
    for slot, partner in enumerate(mixed.partners.tolist()):
        mask = mixed.pasted[slot].numpy()
        assert np.array_equal(mixed_images[slot], np.where(mask[..., None], images[partner], images[slot]))
        assert np.array_equal(mixed_labels[slot], np.where(mask, labels[partner], labels[slot]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("probability", "share"), [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0)])
def test_crops_are_mixed_as_often_as_their_probability(kind, probability, share):
    labels, mixer = labels_of(8, (64, 64)), mixer_of(kind, probability)
    mixed = [pasted(mixer, step, labels).any(axis=(1, 2)) for step in range(60)]
    assert np.mean(mixed) == pytest.approx(share, abs=0.06)


def test_cutmix_pastes_rectangles_of_whole_cells_of_all_sizes_everywhere():
    shares, covered = [], np.zeros((32, 48))
    for step in range(100):
        for mask in pasted(mixer_of("cutmix"), step, labels_of()):
            rows, columns = mask.any(1), mask.any(0)
            assert np.array_equal(mask, rows[:, None] & columns)
            assert np.array_equal(mask, mask[::STRIDE, ::STRIDE].repeat(STRIDE, 0).repeat(STRIDE, 1))
            assert (np.diff(np.flatnonzero(rows)) == 1).all()
            assert (np.diff(np.flatnonzero(columns)) == 1).all()
            shares.append(mask.mean())
            covered += mask
    assert np.quantile(shares, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.08)
    assert covered.min() > 0


def test_classmix_pastes_all_pixels_of_half_of_the_classes():
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[1] = np.arange(5).repeat(13)[:64].reshape(8, 8)  # 0 to 4
    labels[1, 0, :3] = IGNORE
    drawn = set()
    for step in range(40):
        mask = pasted(mixer_of("classmix"), step, labels)
        taken = set(np.unique(labels[1][mask[0]]).tolist())
        assert len(taken) == 2
        assert np.array_equal(mask[0], np.isin(labels[1], list(taken)))
        assert not mask[1].any(), "of one class, half is none"
        drawn |= taken
    assert drawn == {0, 1, 2, 3, 4}, "never the pixels without a class"


def test_classmix_of_crops_without_classes_changes_nothing():
    assert not pasted(mixer_of("classmix"), 0, np.full((3, 8, 8), IGNORE, np.uint8)).any()


def test_values_are_mixed_as_the_pixel_at_the_centre_of_their_cell():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 2:, 5:] = True  # not whole cells of 4 pixels: centres are pixels 2 and 6
    values = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)
    expected = values.clone()
    expected[0, :, 0, 1], expected[0, :, 1, 1] = values[1, :, 0, 1], values[1, :, 1, 1]
    mixed = Mixed(torch.tensor([1, 0]), mask)
    assert torch.equal(mixed.mix(values), expected)
    pixels = torch.arange(2 * 8 * 8.0).reshape(2, 1, 8, 8)
    assert torch.equal(mixed.mix(pixels)[0], torch.where(mask[:1], pixels[1:], pixels[:1])[0])


def loader_of(mixer: Mixer | None, dtype="float16", flip_probability=0.5, split=None) -> tuple[CropLoader, np.ndarray]:
    """A loader of crops with stored logits, and these logits as float32 (N, K, h, w, C)."""
    grid = tuple(side // STRIDE for side in CROP_PX)
    logits = np.random.default_rng(3).normal(size=(FRAMES, VIEWS, *grid, CLASSES)).astype(np.float32)
    scale = None
    if dtype == "uint8":
        values, scale = quantize(logits.reshape(-1, *logits.shape[2:]))
        values = values.reshape(logits.shape)
        logits = values * scale[:, :, 1:].astype(np.float32).reshape(FRAMES, VIEWS, grid[0], 1, CLASSES)
        logits += scale[:, :, :1].astype(np.float32).reshape(FRAMES, VIEWS, grid[0], 1, CLASSES)
    else:
        values = logits.astype(dtype)
        logits = values.astype(np.float32)
    batches = BatchSampler(0, "distill", FRAMES, VIEWS, BATCH, flip_probability, 0.0)
    stored = StoredLogits(values, scale, grid, STRIDE)
    return CropLoader(split or make_split(), batches, origins(), CROP_PX, stored, mixer=mixer), logits


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_mixed_batch_equal_those_mixed_by_hand(kind, dtype):
    loader, logits = loader_of(mixer_of(kind), dtype)
    batch = loader.load(1)
    draws = batch.indices
    crops = logits[draws.frames, draws.views]
    crops = np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, draws.flips, strict=True)])
    expected = crops.copy()
    for slot in range(BATCH):
        for row in range(crops.shape[1]):
            for column in range(crops.shape[2]):
                if batch.mixed.pasted[slot, row * STRIDE + 2, column * STRIDE + 2]:
                    expected[slot, row, column] = crops[(slot + 1) % BATCH, row, column]
    assert not np.array_equal(expected, crops)
    found = batch.teacher_logits(CPU).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_is_the_unmixed_one_mixed(kind):
    plain, mixed = loader_of(None)[0].load(2), loader_of(mixer_of(kind))[0].load(2)
    images, labels = plain.images.numpy().copy(), plain.labels.numpy().copy()
    mixer_of(kind).paste(2, images, labels)
    assert np.array_equal(mixed.images, images)
    assert np.array_equal(mixed.labels, labels)
    assert not np.array_equal(mixed.images, plain.images)


def test_control_gets_the_same_mixed_crops_as_a_student():
    student, _ = loader_of(mixer_of("cutmix"))
    control = CropLoader(student.split, student.batches, student.origins, CROP_PX, mixer=mixer_of("cutmix"))
    for step in range(3):
        assert torch.equal(control.load(step).images, student.load(step).images)
        assert torch.equal(control.load(step).labels, student.load(step).labels)


def test_live_teacher_sees_the_mixed_image():
    seen = []

    class Watching(TinyNet):
        def forward(self, images_BCHW):
            seen.append(images_BCHW)
            return super().forward(images_BCHW)

    job = make_job(mixer=mixer_of("cutmix"), **distilled(live_teacher=Watching().eval(), jitter=0.0))
    batch = job.batches.load(0)
    inputs = batch.inputs(CPU)
    logits = job.net(inputs)
    job.distillation(torch.tensor(1.0), logits, logits, inputs, batch)
    assert torch.equal(seen[0], inputs)
    assert batch.mixed.pasted.any()
