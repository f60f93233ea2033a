"""The teacher's stored logits are those that the live teacher gives on the same crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.provenance import file_sha256
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.teacher_cache import ROWS, TeacherCache
from segdistill.data.transforms import crop, normalize
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.nets.weights import load_net
from segdistill.params.model import ViewLimitParams
from segdistill.paths import VAL_CLASSES
from segdistill.scoring.record import ClassMapArchive
from segdistill.student.distillation import OnStoredGrid
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import (
    ARCH,
    CLASSES,
    COMPUTE,
    CROP_PX,
    FRAMES,
    LOGITS,
    SCALE,
    STRIDE,
    VIEWS,
    floats,
    indices_of,
    logits_params,
    spec_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")
LIMIT = ViewLimitParams(distill_steps=1, finetune_steps=1, batch_size=2)


def stored_logits(cache: TeacherCache) -> np.ndarray:
    return np.array(np.load(cache.folder / LOGITS))


@torch.inference_mode()
def live_logits(images_BHW3: np.ndarray) -> torch.Tensor:
    """The logits of the network that `support.cached_teacher.write_teacher` saves."""
    torch.manual_seed(0)
    return build(ARCH, CLASSES).eval()(normalize(torch.from_numpy(images_BHW3)))


def all_views(split: Split, spec: ViewSpec) -> np.ndarray:
    """Every crop view, uint8 (N * K, H, W, 3), by slicing."""
    crops = []
    for image, corners in zip(split.images, spec.origins(), strict=True):
        crops += [image[top : top + CROP_PX[0], left : left + CROP_PX[1]] for top, left in corners]
    return np.stack(crops)


def test_stored_logits_are_those_of_the_live_teacher_on_the_same_crop(opened):
    stored = stored_logits(opened.open("views")).reshape(-1, 8, 12, CLASSES)
    live = live_logits(all_views(opened.split, opened.spec))
    expected = upsample(live, (8, 12)).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=2**-10, atol=1e-4)


def test_logits_of_frames_are_those_of_the_live_teacher_on_whole_frames(opened):
    expected = upsample(live_logits(np.array(opened.split.images)), (12, 20)).permute(0, 2, 3, 1).numpy()
    stored = stored_logits(opened.open("frame")).astype(np.float32)
    np.testing.assert_allclose(stored, expected, rtol=2**-10, atol=1e-4)


def test_images_and_logits_are_cropped_at_the_same_places(opened):
    indices = indices_of(0.0)
    origins = opened.spec.origins()[indices.frames, indices.views]
    images = np.empty((6, *CROP_PX, 3), np.uint8)
    crop(opened.split.images, indices.frames, origins, indices.flips, CROP_PX, images)
    expected = upsample(live_logits(images), (8, 12)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(floats(opened.open("views")), expected, rtol=2**-10, atol=1e-4)


def test_crops_of_frames_are_windows_of_the_logits_of_the_whole_frame(opened):
    cache, indices = opened.open("frame"), indices_of(0.0)
    origins = opened.spec.origins()[indices.frames, indices.views] // STRIDE
    whole, found = stored_logits(cache), floats(cache)
    for slot, (frame, (top, left)) in enumerate(zip(indices.frames, origins, strict=True)):
        assert np.array_equal(found[slot], whole[frame, top : top + 8, left : left + 12].astype(np.float32))


@pytest.mark.parametrize("kind", ["views", "frame"])
def test_flipped_logits_mirror_the_unflipped(opened, kind):
    assert np.array_equal(floats(opened.open(kind), 1.0), floats(opened.open(kind))[:, :, ::-1])


def test_online_stores_the_teacher_itself(opened):
    cache = opened.open("online")
    net, _ = load_net(cache.folder / "teacher.safetensors")
    assert cache.stored is None
    crops = np.array(opened.split.images[:, :32, :48])
    with torch.inference_mode():
        assert torch.equal(net(normalize(torch.from_numpy(crops))), live_logits(crops))


@pytest.mark.parametrize("kind", ["views", "frame", "online"])
def test_every_kind_holds_the_class_maps_and_the_hash_of_the_teacher(opened, kind):
    cache = opened.open(kind)
    assert (ClassMapArchive(cache.folder / VAL_CLASSES)(0) == 3).all()
    assert cache.manifest.teacher_sha256 == file_sha256("models/teacher/teacher.safetensors")


def test_float32_keeps_every_bit(opened, tmp_path):
    build_cache("views", tmp_path / "views", opened.split, opened.spec, logits_params("float32"), COMPUTE)
    stored = stored_logits(TeacherCache("views", opened.spec, tmp_path / "views"))
    assert stored.dtype == np.float32
    assert np.array_equal(stored.astype(np.float16), stored_logits(opened.open("views")))


@pytest.mark.parametrize("flip_probability", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("kind", ["views", "frame"])
def test_uint8_differs_from_float32_by_half_a_step_at_most(opened, tmp_path, kind, flip_probability):
    for dtype in ("float32", "uint8"):
        build_cache(kind, tmp_path / dtype, opened.split, opened.spec, logits_params(dtype), COMPUTE)
    exact, coarse = (TeacherCache(kind, opened.spec, tmp_path / dtype) for dtype in ("float32", "uint8"))
    whole, scale = stored_logits(exact), np.load(coarse.folder / SCALE)
    assert stored_logits(coarse).dtype == np.uint8
    assert scale.shape == (*whole.shape[:-2], 2, CLASSES)
    # A step spreads the range of a row over 255 levels; rounding it to float16 may widen it a little.
    half_step = 1.01 * np.ptp(whole, axis=-2).max() / 255 / 2
    expected, found = floats(exact, flip_probability), floats(coarse, flip_probability)
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).max() <= half_step


def test_logits_do_not_depend_on_the_batch_size(opened, tmp_path):
    params = logits_params("float32").model_copy(update={"batch_size": 1})
    for name, each in (("one", params), ("four", logits_params("float32"))):
        build_cache("views", tmp_path / name, opened.split, opened.spec, each, COMPUTE)
    one, four = (np.load(tmp_path / name / LOGITS) for name in ("one", "four"))
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-4)


def test_live_teacher_gives_logits_on_the_grid_of_the_stored_ones(opened, tmp_path):
    spec = spec_of(opened.data, stride=8)  # the network's own is 4
    build_cache("views", tmp_path / "views", opened.split, spec, logits_params("float32", stride=8), COMPUTE)
    stored = stored_logits(TeacherCache("views", spec, tmp_path / "views"))
    assert stored.shape == (FRAMES, VIEWS, 4, 6, CLASSES)
    net, _ = load_net("models/teacher/teacher.safetensors")
    with torch.inference_mode():
        live = OnStoredGrid(net, 8)(normalize(torch.from_numpy(all_views(opened.split, spec))))
    np.testing.assert_allclose(live.permute(0, 2, 3, 1).reshape(stored.shape), stored, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_same_teacher_gives_the_same_bytes(opened, tmp_path, dtype):
    for name in ("one", "two"):
        build_cache("views", tmp_path / name, opened.split, opened.spec, logits_params(dtype), COMPUTE)
    assert {file.name for file in (tmp_path / "one").iterdir()} >= {LOGITS, "manifest.json", VAL_CLASSES}
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()


@pytest.fixture
def limited(opened, tmp_path):
    """Caches of the views that one step of 2 crops draws in each phase, as float16 and as uint8, by dtype."""
    for dtype in ("float16", "uint8"):
        params = logits_params(dtype).model_copy(update={"limit_views_to": LIMIT})
        build_cache("views", tmp_path / dtype, opened.split, opened.spec, params, COMPUTE)
    return {dtype: TeacherCache("views", opened.spec, tmp_path / dtype) for dtype in ("float16", "uint8")}


def batches_of(phase: str) -> BatchSampler:
    return BatchSampler(1, phase, FRAMES, VIEWS, LIMIT.batch_size, 0.5, 0.2)


def test_limited_cache_stores_only_the_views_that_trainings_draw(limited):
    drawn = {(f, v) for phase in LIMIT.steps for f, v in zip(*batches_of(phase).indices(0)[1:3], strict=True)}
    assert 2 <= len(drawn) < FRAMES * VIEWS
    for cache in limited.values():
        assert stored_logits(cache).shape == (len(drawn), 8, 12, CLASSES)
        assert set(zip(*np.nonzero(np.load(cache.folder / ROWS) >= 0), strict=True)) == drawn
        assert cache.manifest.limit_views_to == LIMIT.model_dump()


@pytest.mark.parametrize("phase", LIMIT.steps)
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_limited_cache_gives_the_logits_of_a_whole_one(opened, limited, tmp_path, dtype, phase):
    build_cache("views", tmp_path / "whole", opened.split, opened.spec, logits_params(dtype), COMPUTE)
    indices = batches_of(phase).indices(0)
    corners = opened.spec.origins()[indices.frames, indices.views]
    limited[dtype].check_holds(f"{phase}/run", batches_of(phase), 1)
    found = limited[dtype].stored.crop(indices, corners)
    expected = TeacherCache("views", opened.spec, tmp_path / "whole").stored.crop(indices, corners)
    # The teacher ran on other batches, which rounds differently.
    tolerance = 0.02 if dtype == "uint8" else 1e-3
    torch.testing.assert_close(found.floats(COMPUTE.device), expected.floats(COMPUTE.device), rtol=0, atol=tolerance)


def test_training_that_draws_a_view_that_is_not_stored_is_refused(limited):
    message = r"lacks \d of the views that distill/a draws; it has those drawn by \{'distill_steps': 1, .*\}; change"
    with pytest.raises(UserError, match=message):
        limited["float16"].check_holds("distill/a", batches_of("distill"), 9)


def test_whole_cache_holds_the_views_of_any_training(opened, limited):
    training = ("distill/a", BatchSampler(5, "distill", FRAMES, VIEWS, 3, 0.5, 0.2), 50)
    with pytest.raises(UserError, match="lacks .* of the views that distill/a draws"):
        limited["float16"].check_holds(*training)
    for kind in ("views", "online"):
        opened.open(kind).check_holds(*training)  # raises nothing
