"""The stored forms of logits against plain NumPy in float64: what is kept, what is lost, what is refused."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segdistill.data.sampling import BatchIndices
from segdistill.data.teacher_cache import ArraySpec, StoredCrops, StoredLogits
from segdistill.teacher_logits.writer import LogitsWriter, quantize
from support.cached_teacher import LOGITS, SCALE

CPU = torch.device("cpu")


def restored(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """offset + step * stored in float64, (B, h, w, C)."""
    offset, step = scale.astype(np.float64)[:, :, :1], scale.astype(np.float64)[:, :, 1:]
    return offset + step * stored


def noise(*shape: int, spread: float = 5.0, seed: int = 0) -> np.ndarray:
    return (spread * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def indices_of(frames: list[int], views: list[int], flips: list[bool]) -> BatchIndices:
    return BatchIndices(0, np.array(frames), np.array(views), np.array(flips), np.ones((len(frames), 3)))


def written(folder, dtype: str, logits: np.ndarray, at_once: int = 2) -> dict[str, ArraySpec]:
    """Write `logits` (..., h, w, C) crop after crop, and return the arrays that the manifest names."""
    flat = logits.reshape(-1, *logits.shape[-3:])
    with LogitsWriter(folder, dtype, logits.shape) as writer:
        for first in range(0, len(flat), at_once):
            assert writer.append(flat[first : first + at_once]).all()
    return writer.arrays


@given(hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-6e4, 6e4, width=32)))
@settings(deadline=None, max_examples=200)
def test_no_logit_is_off_by_more_than_half_a_step(logits):
    stored, scale = quantize(logits)
    assert (stored.dtype, scale.dtype, scale.shape) == (np.uint8, np.float16, (2, 3, 2, 5))
    off = np.abs(restored(stored, scale) - logits)
    step = scale[:, :, 1:].astype(np.float64)
    # Float32 arithmetic may lose some more, and so may float16 offsets where the range is too small for any step.
    rounding = 1e-6 * np.abs(logits).max() + np.where(step == 0, 2.0**-10 * np.abs(logits) + 1e-7, 0)
    assert (off <= step / 2 + rounding).all()


def test_steps_are_as_small_as_the_range_of_the_row_allows():
    logits = noise(2, 3, 40, 5)
    step = quantize(logits)[1][:, :, 1].astype(np.float64)
    ideal = np.ptp(logits.astype(np.float64), axis=2) / 255
    assert (step >= 0.999 * ideal).all()
    assert (step <= 1.01 * ideal).all()


def test_ends_of_a_range_are_the_first_and_the_last_level():
    stored, _ = quantize(noise(1, 4, 60, 3))
    assert (stored.min(2) == 0).all()
    assert (stored.max(2) >= 254).all()


def test_row_without_range_is_its_offset():
    logits = np.full((1, 2, 6, 3), -7.25, np.float32)
    stored, scale = quantize(logits)
    assert np.array_equal(restored(stored, scale), logits)


def test_classes_and_rows_have_their_own_scale():
    logits = noise(1, 3, 8, 4)
    changed = logits.copy()
    changed[0, 1, :, 2] *= 1000
    (stored, scale), (other_stored, other_scale) = quantize(logits), quantize(changed)
    same = np.ones((1, 3, 4), bool)
    same[0, 1, 2] = False
    assert np.array_equal((scale == other_scale).all(2), same)
    assert np.array_equal(stored.transpose(0, 1, 3, 2)[same], other_stored.transpose(0, 1, 3, 2)[same])


def test_mean_kl_of_8_bits_is_small():
    """Against float64, with logits as wide as those of a trained network: far below the distance of any student."""
    logits = noise(4, 16, 32, 19)
    for temperature in (1.0, 4.0):
        exact, found = (
            torch.from_numpy(x.astype(np.float64) / temperature).log_softmax(-1)
            for x in (logits, restored(*quantize(logits)))
        )
        assert 0 < (exact.exp() * (exact - found)).sum(-1).mean() < 1e-3


@pytest.mark.parametrize("stored", ["values", "scaled"])
def test_floats_are_the_logits_channels_first(stored):
    logits = noise(2, 4, 6, 3)
    if stored == "values":
        crops, expected = StoredCrops(torch.from_numpy(logits.astype(np.float16))), logits.astype(np.float16)
    else:
        values, scale = quantize(logits)
        crops, expected = StoredCrops(torch.from_numpy(values), torch.from_numpy(scale)), restored(values, scale)
    found = crops.floats(CPU)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (2, 3, 4, 6))
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected.astype(np.float64), rtol=1e-6, atol=1e-5)


def test_floats_do_not_change_what_is_stored():
    crops = StoredCrops(*map(torch.from_numpy, quantize(noise(1, 4, 6, 3))))
    before = [part.clone() for part in crops]
    crops.floats(CPU)
    assert all(torch.equal(part, old) for part, old in zip(crops, before, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_numpy_reads_what_was_written(tmp_path, dtype):
    logits = noise(3, 2, 4, 6, 5)
    arrays = written(tmp_path, dtype, logits)
    assert {path.name for path in tmp_path.iterdir()} == set(arrays)
    for name, described in arrays.items():
        array = np.load(tmp_path / name)
        assert ArraySpec.of(array) == described
    stored = np.load(tmp_path / LOGITS)
    if dtype == "uint8":
        scale = np.load(tmp_path / SCALE)
        assert np.array_equal(stored.reshape(6, 4, 6, 5), quantize(logits.reshape(6, 4, 6, 5))[0])
        assert np.array_equal(scale.reshape(6, 4, 2, 5), quantize(logits.reshape(6, 4, 6, 5))[1])
    else:
        assert np.array_equal(stored, logits.astype(dtype))


def test_files_do_not_depend_on_how_many_crops_are_written_at_once(tmp_path):
    logits = noise(3, 2, 4, 6, 5)
    for at_once in (1, 6):
        (tmp_path / str(at_once)).mkdir()
        written(tmp_path / str(at_once), "uint8", logits, at_once)
    for name in (LOGITS, SCALE):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "6" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_append_says_which_crops_are_not_finite(tmp_path, dtype, bad):
    logits = noise(4, 3, 5, 2)
    logits[2, 1, 4, 1] = bad
    with LogitsWriter(tmp_path, dtype, logits.shape) as writer:
        assert writer.append(logits).tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_logit_too_large_for_its_dtype_is_not_finite(tmp_path, dtype):
    logits = noise(2, 3, 5, 2)
    logits[1, 0, 0, 0] = 1e30
    with LogitsWriter(tmp_path, dtype, logits.shape) as writer:
        assert writer.append(logits).tolist() == [True, False]


def test_full_disk_is_an_os_error(tmp_path):
    full = tmp_path / LOGITS
    full.symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match="No space left") as raised,
        LogitsWriter(tmp_path, "float16", (1, 64, 64, 8)) as w,
    ):
        w.append(noise(1, 64, 64, 8))
    assert raised.value.errno == errno.ENOSPC


def opened(folder, arrays: dict[str, ArraySpec], frames: bool) -> StoredLogits:
    """The files in `folder` as logits of 4x6 cells at a stride of 4 pixels: of whole frames, or of views."""
    parts = [np.load(folder / name, mmap_mode="r") for name in (LOGITS, SCALE) if name in arrays]
    assert parts[0].ndim == (4 if frames else 5)
    return StoredLogits(parts[0], parts[1] if len(parts) > 1 else None, grid=(4, 6), stride=4)


def floats(stored: StoredLogits, indices: BatchIndices, origins: list[list[int]]) -> np.ndarray:
    return stored.crop(indices, np.array(origins)).floats(CPU).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_crops_of_views_are_whole_views(tmp_path, dtype):
    logits = noise(3, 2, 4, 6, 5)
    stored = opened(tmp_path, written(tmp_path, dtype, logits), frames=False)
    indices = indices_of([2, 0, 1], [1, 0, 1], [False, True, False])
    expected = np.stack([logits[2, 1], logits[0, 0][:, ::-1], logits[1, 1]])
    found = floats(stored, indices, [[8, 4], [0, 0], [4, 4]])
    np.testing.assert_allclose(found, expected, atol=0.1 if dtype == "uint8" else 0.02)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_crops_of_frames_are_windows_at_the_stride(tmp_path, dtype):
    logits = noise(3, 8, 10, 5)
    stored = opened(tmp_path, written(tmp_path, dtype, logits), frames=True)
    expected = np.stack([logits[2, 4:8, 2:8][:, ::-1], logits[0, 1:5, 3:9]])
    found = floats(stored, indices_of([2, 0], [0, 1], [True, False]), [[16, 8], [4, 12]])
    np.testing.assert_allclose(found, expected, atol=0.1 if dtype == "uint8" else 0.02)


def test_prefetching_and_dropping_pages_change_no_value(tmp_path):
    stored = opened(tmp_path, written(tmp_path, "uint8", noise(3, 2, 4, 6, 5)), frames=False)
    indices, origins = indices_of([2, 0], [1, 0], [False, True]), [[0, 0], [0, 0]]
    before = floats(stored, indices, origins)
    assert stored.prefetch(indices, np.array(origins)) == 2 * (4 * 6 * 5 + 4 * 2 * 5 * 2)
    stored.drop_pages()
    assert np.array_equal(floats(stored, indices, origins), before)
