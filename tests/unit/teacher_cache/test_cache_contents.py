"""The teacher's stored logits are what the live teacher gives on the same crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cached_teacher import (
    ARCH,
    CLASSES,
    COMPUTE,
    CROP_PX,
    FRAMES,
    STRIDE,
    VIEWS,
    facts_of,
    floats,
    logits_params,
    plan_of,
)
from segdistill.dataset import Split
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.provenance import file_sha256
from segdistill.stored_logits import LOGITS, SCALE
from segdistill.teacher_cache import Teaching, origins_of
from segdistill.teacher_logits import build_cache
from segdistill.transforms import cut, normalised

pytestmark = pytest.mark.usefixtures("one_thread")


def stored_logits(teaching: Teaching) -> np.ndarray:
    """All logits of a cache as they lie on disk."""
    return np.array(np.load(teaching.folder / LOGITS))


@torch.inference_mode()
def live_logits(teacher: torch.nn.Module, images_BHW3: np.ndarray) -> torch.Tensor:
    return teacher(normalised(torch.from_numpy(images_BHW3)))


def all_views(split: Split, facts: dict) -> np.ndarray:
    """Every crop view, uint8 (N * K, H, W, 3), cut by slicing."""
    crops = []
    for image, corners in zip(split.images, origins_of(facts), strict=True):
        crops += [image[top : top + CROP_PX[0], left : left + CROP_PX[1]] for top, left in corners]
    return np.stack(crops)


def test_stored_logits_are_the_live_teachers_on_the_same_crop(opened):
    stored = stored_logits(opened.open("views")).reshape(-1, 8, 12, CLASSES)
    live = live_logits(opened.open("online").live_teacher(COMPUTE), all_views(opened.split, opened.facts))
    expected = upsample(live, (8, 12)).permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.01
    np.testing.assert_allclose(stored.astype(np.float32), expected, rtol=2**-10, atol=1e-4)


def test_stored_logits_name_the_same_classes(opened):
    stored = torch.from_numpy(stored_logits(opened.open("views"))).flatten(0, 1).permute(0, 3, 1, 2).float()
    live = live_logits(opened.open("online").live_teacher(COMPUTE), all_views(opened.split, opened.facts))
    classes, expected = (upsample(upsample(x, (8, 12)), CROP_PX).argmax(1) for x in (stored, live))
    assert len(expected.unique()) > 1
    assert (classes == expected).float().mean() >= 0.999


def test_views_of_a_frame_differ(opened):
    logits = stored_logits(opened.open("views"))
    assert not any(np.array_equal(frame[0], frame[1]) for frame in logits)


@pytest.mark.parametrize("kind", ["views", "frame"])
def test_a_flipped_cut_is_the_mirror_of_the_unflipped(opened, kind):
    assert np.array_equal(floats(opened.open(kind), 1.0), floats(opened.open(kind))[:, :, ::-1])


def test_a_cut_gives_the_planned_views(opened):
    teaching, plan = opened.open("views"), plan_of(0.0)
    assert np.array_equal(floats(teaching), stored_logits(teaching)[plan.frames, plan.views].astype(np.float32))


def test_a_cut_of_frames_is_a_window_of_the_whole_frames_logits(opened):
    teaching, plan = opened.open("frame"), plan_of(0.0)
    origins = origins_of(opened.facts)[plan.frames, plan.views] // STRIDE
    whole, found = stored_logits(teaching), floats(teaching)
    for slot, (frame, (top, left)) in enumerate(zip(plan.frames, origins, strict=True)):
        assert np.array_equal(found[slot], whole[frame, top : top + 8, left : left + 12].astype(np.float32))


def test_frame_logits_are_the_live_teachers_on_whole_frames(opened):
    live = live_logits(opened.open("online").live_teacher(COMPUTE), np.array(opened.split.images))
    expected = upsample(live, (12, 20)).permute(0, 2, 3, 1).numpy()
    stored = stored_logits(opened.open("frame")).astype(np.float32)
    np.testing.assert_allclose(stored, expected, rtol=2**-10, atol=1e-4)


def test_online_gives_the_teacher_itself(opened):
    teaching = opened.open("online")
    teacher = teaching.live_teacher(COMPUTE)
    torch.manual_seed(0)
    saved = build(ARCH, CLASSES).eval()
    crops = np.array(opened.split.images[:, :32, :48])
    assert not teacher.training
    assert teaching.stored is None
    assert torch.equal(live_logits(teacher, crops), live_logits(COMPUTE.place(saved), crops))


@pytest.mark.parametrize("kind", ["views", "frame"])
def test_stored_kinds_have_no_live_teacher(opened, kind):
    assert opened.open(kind).live_teacher(COMPUTE) is None


@pytest.mark.parametrize("kind", ["views", "frame", "online"])
def test_every_kind_carries_the_class_maps_and_the_teachers_hash(opened, kind):
    teaching = opened.open(kind)
    assert (teaching.val_classes(0) == 3).all()
    assert teaching.manifest["teacher_sha256"] == file_sha256("models/teacher/teacher.safetensors")


def test_float32_keeps_every_bit(opened, tmp_path):
    build_cache("views", tmp_path / "views", opened.split, opened.facts, logits_params("float32"), COMPUTE)
    stored = stored_logits(Teaching("views", opened.facts, tmp_path / "views"))
    assert stored.dtype == np.float32
    assert np.array_equal(stored.astype(np.float16), stored_logits(opened.open("views")))


@pytest.mark.parametrize("flip_probability", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("kind", ["views", "frame"])
def test_uint8_is_float32_to_half_a_step(opened, tmp_path, kind, flip_probability):
    for dtype in ("float32", "uint8"):
        build_cache(kind, tmp_path / dtype, opened.split, opened.facts, logits_params(dtype), COMPUTE)
    exact, coarse = (Teaching(kind, opened.facts, tmp_path / dtype) for dtype in ("float32", "uint8"))
    whole, scale = stored_logits(exact), np.load(coarse.folder / SCALE)
    assert stored_logits(coarse).dtype == np.uint8
    assert scale.shape == (*whole.shape[:-2], 2, CLASSES)
    # A step spreads the range of a row over 255 levels; rounding it to float16 may widen it a little.
    half_step = 1.01 * np.ptp(whole, axis=-2).max() / 255 / 2
    expected, found = floats(exact, flip_probability), floats(coarse, flip_probability)
    assert not np.array_equal(found, expected)
    assert np.abs(found - expected).max() <= half_step


def test_the_size_of_a_forward_pass_does_not_matter(opened, tmp_path):
    params = logits_params("float32").model_copy(update={"batch_size": 1})
    for name, each in (("one", params), ("four", logits_params("float32"))):
        build_cache("views", tmp_path / name, opened.split, opened.facts, each, COMPUTE)
    one, four = (np.load(tmp_path / name / LOGITS) for name in ("one", "four"))
    np.testing.assert_allclose(one, four, rtol=1e-4, atol=1e-4)


def test_a_coarser_stride_stores_a_smaller_grid(opened, tmp_path):
    facts = facts_of(opened.split, stride=8)
    build_cache("views", tmp_path / "views", opened.split, facts, logits_params(stride=8), COMPUTE)
    teaching = Teaching("views", facts, tmp_path / "views")
    assert stored_logits(teaching).shape == (FRAMES, VIEWS, 4, 6, CLASSES)
    assert floats(teaching).shape == (6, 4, 6, CLASSES)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_the_same_teacher_gives_the_same_bytes(opened, tmp_path, dtype):
    for name in ("one", "two"):
        build_cache("views", tmp_path / name, opened.split, opened.facts, logits_params(dtype), COMPUTE)
    assert {file.name for file in (tmp_path / "one").iterdir()} >= {LOGITS, "manifest.json", "val_classes.npz"}
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / file.name).read_bytes() == file.read_bytes()


def test_images_and_logits_are_cut_at_the_same_places(opened):
    plan = plan_of(0.0)
    origins = origins_of(opened.facts)[plan.frames, plan.views]
    images = np.empty((6, *CROP_PX, 3), np.uint8)
    cut(opened.split.images, plan.frames, origins, plan.flips, CROP_PX, images)
    live = live_logits(opened.open("online").live_teacher(COMPUTE), images)
    expected = upsample(live, (8, 12)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(floats(opened.open("views")), expected, rtol=2**-10, atol=1e-4)
