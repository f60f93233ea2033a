"""Mirrored views: a teacher's symmetry is measured, and flipped crops may have its logits of the flipped crop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import ROWS, TeacherCache
from segdistill.params.model import ViewLimitParams
from segdistill.teacher.model import Teacher
from segdistill.teacher_logits import build
from segdistill.training.batches import CropLoader
from support.cached_teacher import COMPUTE, CROP_PX, FRAMES, LOGITS, SCALE, STRIDE, VIEWS, floats, logits_params

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = ViewLimitParams(distill_steps=1, finetune_steps=0, batch_size=2)


class OnePixel:
    """Gives the colours of the first pixel of each cell: on a mirrored image it sees other pixels."""

    def logits(self, images_BHW3: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(images_BHW3[:, ::STRIDE, ::STRIDE].astype(np.float32)).permute(0, 3, 1, 2)


class MeanPixel:
    """Gives the mean colour of each cell, which a mirrored image does not change."""

    def logits(self, images_BHW3: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(images_BHW3.astype(np.float32)).permute(0, 3, 1, 2)
        return torch.nn.functional.avg_pool2d(pixels, STRIDE)


@pytest.fixture
def cache_of(opened, tmp_path, monkeypatch):
    """Build a cache of views by a teacher of pixels."""

    def cache_of(mirrored, teacher=OnePixel, dtype="float32", limit=None) -> TeacherCache:
        monkeypatch.setattr(build, "open_teacher", lambda *_: Teacher(teacher(), 3, None, "pixels"))
        params = logits_params(dtype).model_copy(update={"mirrored": mirrored, "limit_views_to": limit})
        out = tmp_path / f"{teacher.__name__}_{mirrored}_{dtype}"
        build.build_cache("views", out, opened.split, opened.spec, params, COMPUTE)
        return TeacherCache("views", opened.spec, out)

    return cache_of


def batches_of(flip_probability: float) -> BatchSampler:
    return BatchSampler(1, "distill", FRAMES, VIEWS, 6, flip_probability, 0.0)


@pytest.mark.parametrize("flip_probability", [0.0, 0.5, 1.0])
def test_flipped_crops_have_the_logits_of_the_teacher_on_the_flipped_crop(opened, cache_of, flip_probability):
    cache = cache_of(True)
    loader = CropLoader(opened.split, batches_of(flip_probability), opened.spec.origins(), CROP_PX, cache.stored)
    for step in range(3):
        batch = loader.load(step)
        expected = OnePixel().logits(batch.images.numpy())
        assert torch.equal(batch.teacher_logits(COMPUTE.device), expected)


def test_without_them_flipped_crops_have_the_mirrored_logits(cache_of):
    cache = cache_of(False)
    assert np.array_equal(floats(cache, 1.0), floats(cache)[:, :, ::-1])
    assert not np.array_equal(floats(cache, 1.0), floats(cache_of(True), 1.0))


def test_mirrored_views_double_the_arrays(cache_of):
    cache = cache_of(True, dtype="uint8")
    assert np.load(cache.folder / LOGITS).shape == (FRAMES, 2 * VIEWS, 8, 12, 3)
    assert np.load(cache.folder / SCALE).shape == (FRAMES, 2 * VIEWS, 8, 2, 3)
    assert json.loads((cache.folder / "manifest.json").read_text())["mirrored"] is True
    plain = cache_of(False, dtype="uint8")
    assert "mirrored" not in json.loads((plain.folder / "manifest.json").read_text())
    assert np.array_equal(np.load(plain.folder / LOGITS), np.load(cache.folder / LOGITS)[:, :VIEWS])


def test_8_bit_logits_of_flipped_crops_are_those_of_float32_rounded(cache_of):
    exact, coarse = cache_of(True), cache_of(True, dtype="uint8")
    for flip_probability in (0.5, 1.0):
        assert np.abs(floats(coarse, flip_probability) - floats(exact, flip_probability)).max() <= 0.51


def test_limited_cache_has_both_sides_of_the_views_that_trainings_draw(opened, cache_of):
    cache, whole = cache_of(True, limit=LIMIT), cache_of(True, dtype="float16")
    rows = np.load(cache.folder / ROWS)
    assert rows.shape == (FRAMES, 2 * VIEWS)
    drawn = BatchSampler(1, "distill", FRAMES, VIEWS, 2, 0.0, 0.0).drawn(1)
    assert np.array_equal(rows >= 0, np.concatenate([drawn, drawn], axis=1))
    assert np.array_equal(cache.stored.lacking, ~drawn)
    for flip_probability in (0.0, 1.0):
        batches = BatchSampler(1, "distill", FRAMES, VIEWS, 2, flip_probability, 0.0)
        cache.check_holds("distill/a", batches, 1)
        indices = batches.indices(0)
        corners = opened.spec.origins()[indices.frames, indices.views]
        found, expected = (each.stored.crop(indices, corners).floats(COMPUTE.device) for each in (cache, whole))
        assert torch.equal(found, expected)
    with pytest.raises(UserError, match="lacks . of the views that distill/a draws"):
        cache.check_holds("distill/a", batches, 9)


def test_auto_stores_the_mirrored_views_of_a_teacher_that_is_not_symmetric(cache_of):
    assert cache_of("auto", OnePixel).manifest.mirrored
    assert not cache_of("auto", MeanPixel).manifest.mirrored


@pytest.mark.parametrize("mirrored", [True, False, "auto"])
def test_manifest_and_log_say_how_symmetric_the_teacher_is(opened, cache_of, capsys, mirrored):
    found = cache_of(mirrored, MeanPixel).manifest.mirror_error
    assert found == {"views": FRAMES * VIEWS, "mean_kl": pytest.approx(0, abs=1e-5), "changed_share": 0.0}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "mirrored views" in line]
    assert "a mean KL of 0.0000 and in the class of 0.0% of the cells" in line
    found = cache_of(mirrored, OnePixel).manifest.mirror_error
    assert found == error_by_hand(opened)
    assert f"{100 * found['changed_share']:.1f}% of the cells" in capsys.readouterr().err


def error_by_hand(opened) -> dict:
    divergences, changed = [], []
    for frame, corners in enumerate(opened.spec.origins()):
        for top, left in corners:
            image = opened.split.images[frame, top : top + CROP_PX[0], left : left + CROP_PX[1]]
            given = image[::STRIDE, ::STRIDE][:, ::-1].astype(np.float64)
            exact = image[:, ::-1][::STRIDE, ::STRIDE].astype(np.float64)
            p, q = (np.exp(each - each.max(-1, keepdims=True)) for each in (exact, given))
            p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
            with np.errstate(divide="ignore", invalid="ignore"):
                divergences.append(np.nansum(p * np.log(p / q), axis=-1).mean())
            changed.append((exact.argmax(-1) != given.argmax(-1)).mean())
    expected = {"mean_kl": np.mean(divergences), "changed_share": np.mean(changed)}
    assert expected["changed_share"] > 0.05
    return {"views": FRAMES * VIEWS} | {key: pytest.approx(value, rel=1e-3) for key, value in expected.items()}


def test_mirrored_cache_whose_manifest_does_not_say_so_is_refused(opened, cache_of):
    cache = cache_of(True)
    path = cache.folder / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["mirrored"]
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"its arrays are of \[3, 4\] frames and views, \[3, 2\] are needed"):
        TeacherCache("views", opened.spec, cache.folder)
