"""The stored forms of logits against plain numpy in float64: what is kept, what is lost, what is refused."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from segdistill.core.errors import UserError
from segdistill.data.sampling import BatchIndices
from segdistill.data.teacher_cache import LOGITS, SCALE, LogitsWriter, StoredCrops, StoredLogits, quantised

CPU = torch.device("cpu")


def restored(stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """offset + step * stored in float64, (B, h, w, C)."""
    offset, step = scale.astype(np.float64)[:, :, :1], scale.astype(np.float64)[:, :, 1:]
    return offset + step * stored


def noise(*shape: int, spread: float = 5.0, seed: int = 0) -> np.ndarray:
    return (spread * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def plan_of(frames: list[int], views: list[int], flips: list[bool]) -> BatchIndices:
    return BatchIndices(0, np.array(frames), np.array(views), np.array(flips), np.ones((len(frames), 3)))


def written(folder, dtype: str, logits: np.ndarray, at_once: int = 2) -> dict:
    """Write `logits` (..., h, w, C) crop after crop, and return what the manifest would say."""
    flat = logits.reshape(-1, *logits.shape[-3:])
    with LogitsWriter(folder, dtype, logits.shape) as writer:
        for first in range(0, len(flat), at_once):
            assert writer.append(flat[first : first + at_once]).all()
    return writer.arrays


@given(hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-6e4, 6e4, width=32)))
@settings(deadline=None, max_examples=200)
def test_no_logit_is_off_by_more_than_half_a_step(logits):
    stored, scale = quantised(logits)
    assert (stored.dtype, scale.dtype, scale.shape) == (np.uint8, np.float16, (2, 3, 2, 5))
    off = np.abs(restored(stored, scale) - logits)
    step = scale[:, :, 1:].astype(np.float64)
    # Beside it only what float32 arithmetic, and offsets in float16 under a range too small for any step, may lose.
    rounding = 1e-6 * np.abs(logits).max() + np.where(step == 0, 2.0**-10 * np.abs(logits) + 1e-7, 0)
    assert (off <= step / 2 + rounding).all()


def test_steps_are_as_small_as_the_range_of_the_row_allows():
    logits = noise(2, 3, 40, 5)
    step = quantised(logits)[1][:, :, 1].astype(np.float64)
    ideal = np.ptp(logits.astype(np.float64), axis=2) / 255
    assert (step >= 0.999 * ideal).all()
    assert (step <= 1.01 * ideal).all()


def test_the_ends_of_a_range_are_the_first_and_the_last_level():
    stored, _ = quantised(noise(1, 4, 60, 3))
    assert (stored.min(2) == 0).all()
    assert (stored.max(2) >= 254).all()


def test_a_row_without_range_is_its_offset():
    logits = np.full((1, 2, 6, 3), -7.25, np.float32)
    stored, scale = quantised(logits)
    assert np.array_equal(restored(stored, scale), logits)


def test_classes_and_rows_have_their_own_scale():
    logits = noise(1, 3, 8, 4)
    changed = logits.copy()
    changed[0, 1, :, 2] *= 1000
    (stored, scale), (other_stored, other_scale) = quantised(logits), quantised(changed)
    same = np.ones((1, 3, 4), bool)
    same[0, 1, 2] = False
    assert np.array_equal((scale == other_scale).all(2), same)
    assert np.array_equal(stored.transpose(0, 1, 3, 2)[same], other_stored.transpose(0, 1, 3, 2)[same])


def test_the_mean_kl_of_8_bits_is_small():
    """Against float64, with logits as wide as a trained net's: far below what a student ever comes to."""
    logits = noise(4, 16, 32, 19)
    for temperature in (1.0, 4.0):
        exact, found = (
            torch.from_numpy(x.astype(np.float64) / temperature).log_softmax(-1)
            for x in (logits, restored(*quantised(logits)))
        )
        assert 0 < (exact.exp() * (exact - found)).sum(-1).mean() < 1e-3


@pytest.mark.parametrize("stored", ["values", "scaled"])
def test_floats_are_the_logits_channels_first(stored):
    logits = noise(2, 4, 6, 3)
    if stored == "values":
        crops, expected = StoredCrops(torch.from_numpy(logits.astype(np.float16))), logits.astype(np.float16)
    else:
        values, scale = quantised(logits)
        crops, expected = StoredCrops(torch.from_numpy(values), torch.from_numpy(scale)), restored(values, scale)
    found = crops.floats(CPU)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (2, 3, 4, 6))
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.permute(0, 2, 3, 1).numpy(), expected.astype(np.float64), rtol=1e-6, atol=1e-5)


def test_floats_leave_what_is_stored():
    crops = StoredCrops(*map(torch.from_numpy, quantised(noise(1, 4, 6, 3))))
    before = [part.clone() for part in crops]
    crops.floats(CPU)
    assert all(torch.equal(part, old) for part, old in zip(crops, before, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_what_is_written_is_what_numpy_reads(tmp_path, dtype):
    logits = noise(3, 2, 4, 6, 5)
    arrays = written(tmp_path, dtype, logits)
    assert {path.name for path in tmp_path.iterdir()} == set(arrays)
    for name, described in arrays.items():
        array = np.load(tmp_path / name)
        assert (str(array.dtype), list(array.shape)) == (described["dtype"], described["shape"])
    stored = np.load(tmp_path / LOGITS)
    if dtype == "uint8":
        scale = np.load(tmp_path / SCALE)
        assert np.array_equal(stored.reshape(6, 4, 6, 5), quantised(logits.reshape(6, 4, 6, 5))[0])
        assert np.array_equal(scale.reshape(6, 4, 2, 5), quantised(logits.reshape(6, 4, 6, 5))[1])
    else:
        assert np.array_equal(stored, logits.astype(dtype))


def test_a_file_is_the_same_however_many_crops_are_written_at_once(tmp_path):
    logits = noise(3, 2, 4, 6, 5)
    for at_once in (1, 6):
        (tmp_path / str(at_once)).mkdir()
        written(tmp_path / str(at_once), "uint8", logits, at_once)
    for name in (LOGITS, SCALE):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "6" / name).read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_crop_with_a_logit_that_is_not_finite_is_named(tmp_path, dtype, bad):
    logits = noise(4, 3, 5, 2)
    logits[2, 1, 4, 1] = bad
    with LogitsWriter(tmp_path, dtype, logits.shape) as writer:
        assert writer.append(logits).tolist() == [True, True, False, True]


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_a_logit_too_large_for_the_form_is_not_finite(tmp_path, dtype):
    logits = noise(2, 3, 5, 2)
    logits[1, 0, 0, 0] = 1e30
    with LogitsWriter(tmp_path, dtype, logits.shape) as writer:
        assert writer.append(logits).tolist() == [True, False]


def test_a_full_disk_is_an_error_of_the_system(tmp_path):
    full = tmp_path / LOGITS
    full.symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match="No space left") as raised,
        LogitsWriter(tmp_path, "float16", (1, 64, 64, 8)) as w,
    ):
        w.append(noise(1, 64, 64, 8))
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_views_are_cut_whole(tmp_path, dtype):
    logits = noise(3, 2, 4, 6, 5)
    stored = StoredLogits.open(tmp_path, written(tmp_path, dtype, logits), grid=(4, 6), stride=4)
    plan = plan_of([2, 0, 1], [1, 0, 1], [False, True, False])
    found = stored.cut(plan, np.array([[8, 4], [0, 0], [4, 4]])).floats(CPU).permute(0, 2, 3, 1).numpy()
    expected = np.stack([logits[2, 1], logits[0, 0][:, ::-1], logits[1, 1]])
    np.testing.assert_allclose(found, expected, atol=0.1 if dtype == "uint8" else 0.02)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_windows_of_frames_are_cut_at_the_stride(tmp_path, dtype):
    logits = noise(3, 8, 10, 5)
    stored = StoredLogits.open(tmp_path, written(tmp_path, dtype, logits), grid=(4, 6), stride=4)
    plan = plan_of([2, 0], [0, 1], [True, False])
    found = stored.cut(plan, np.array([[16, 8], [4, 12]])).floats(CPU).permute(0, 2, 3, 1).numpy()
    expected = np.stack([logits[2, 4:8, 2:8][:, ::-1], logits[0, 1:5, 3:9]])
    np.testing.assert_allclose(found, expected, atol=0.1 if dtype == "uint8" else 0.02)


def test_a_cut_is_what_it_was_after_memory_was_given_back(tmp_path):
    logits = noise(3, 2, 4, 6, 5)
    stored = StoredLogits.open(tmp_path, written(tmp_path, "uint8", logits), grid=(4, 6), stride=4)
    plan, origins = plan_of([2, 0], [1, 0], [False, True]), np.zeros((2, 2), int)
    before = stored.cut(plan, origins)
    assert stored.prefetch(plan, origins) == 2 * (4 * 6 * 5 + 4 * 2 * 5 * 2)
    stored.drop_pages()
    assert all(torch.equal(*parts) for parts in zip(before, stored.cut(plan, origins), strict=True))


def test_another_array_than_was_written_is_refused(tmp_path):
    arrays = written(tmp_path, "uint8", noise(3, 2, 4, 6, 5))
    np.save(tmp_path / SCALE, np.zeros((3, 2, 4, 2, 5), np.float32))
    with pytest.raises(UserError, match=r"scale\.npy: holds float32 \[.*\], its manifest says float16"):
        StoredLogits.open(tmp_path, arrays, (4, 6), 4)
