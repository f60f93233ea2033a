"""The teacher's stored logits are what the live teacher gives on the same crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.provenance import file_sha256
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import LOGITS, ROWS, SCALE, Teaching, origins_of
from segdistill.data.transforms import crop, normalize
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.params.model import ViewLimitParams
from segdistill.teacher_logits.build import build_cache
from support.cached_teacher import (
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

pytestmark = pytest.mark.usefixtures("one_thread")
DRAWN_BY = ViewLimitParams(distill_steps=1, finetune_steps=1, batch_size=2)


def stored_logits(teaching: Teaching) -> np.ndarray:
    """All logits of a cache as they lie on disk."""
    return np.array(np.load(teaching.folder / LOGITS))


@torch.inference_mode()
def live_logits(teacher: torch.nn.Module, images_BHW3: np.ndarray) -> torch.Tensor:
    return teacher(normalize(torch.from_numpy(images_BHW3)))


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


def test_the_live_teacher_speaks_on_the_grid_of_the_stored_logits(opened, tmp_path):
    facts = facts_of(opened.split, stride=8)  # the network's own is 4
    for kind, dtype in (("views", "float32"), ("online", "float16")):
        build_cache(kind, tmp_path / kind, opened.split, facts, logits_params(dtype, stride=8), COMPUTE)
    live = Teaching("online", facts, tmp_path / "online").live_teacher(COMPUTE)
    spoken = live_logits(live, all_views(opened.split, facts)).permute(0, 2, 3, 1).numpy()
    stored = stored_logits(Teaching("views", facts, tmp_path / "views"))
    np.testing.assert_allclose(spoken.reshape(stored.shape), stored, rtol=1e-5, atol=1e-5)


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
    crop(opened.split.images, plan.frames, origins, plan.flips, CROP_PX, images)
    live = live_logits(opened.open("online").live_teacher(COMPUTE), images)
    expected = upsample(live, (8, 12)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(floats(opened.open("views")), expected, rtol=2**-10, atol=1e-4)


@pytest.fixture
def drawn_only(opened, tmp_path):
    """Caches of the views that one step of 2 crops draws in each phase, as float16 and as uint8, by dtype."""
    for dtype in ("float16", "uint8"):
        params = logits_params(dtype).model_copy(update={"limit_views_to": DRAWN_BY})
        build_cache("views", tmp_path / dtype, opened.split, opened.facts, params, COMPUTE)
    return {dtype: Teaching("views", opened.facts, tmp_path / dtype) for dtype in ("float16", "uint8")}


def drawing(phase: str) -> BatchSampler:
    return BatchSampler(1, phase, FRAMES, VIEWS, DRAWN_BY.batch_size, 0.5, 0.2)


def test_views_that_no_training_draws_are_not_computed(opened, drawn_only):
    drawn = {(f, v) for phase in DRAWN_BY.steps for f, v in zip(*drawing(phase).plan(0)[1:3], strict=True)}
    assert 2 <= len(drawn) < FRAMES * VIEWS
    for teaching in drawn_only.values():
        assert stored_logits(teaching).shape == (len(drawn), 8, 12, CLASSES)
        assert set(zip(*np.nonzero(np.load(teaching.folder / ROWS) >= 0), strict=True)) == drawn
        assert teaching.manifest["limit_views_to"] == DRAWN_BY.model_dump()


@pytest.mark.parametrize("phase", DRAWN_BY.steps)
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_views_that_are_drawn_are_those_of_a_whole_cache(opened, drawn_only, tmp_path, dtype, phase):
    build_cache("views", tmp_path / "whole", opened.split, opened.facts, logits_params(dtype), COMPUTE)
    plan = drawing(phase).plan(0)
    corners = origins_of(opened.facts)[plan.frames, plan.views]
    found = drawn_only[dtype].drawn_from(f"{phase}/run", drawing(phase), 1).cut(plan, corners)
    expected = Teaching("views", opened.facts, tmp_path / "whole").stored.cut(plan, corners)
    # The teacher was asked in other batches, which rounds differently.
    tolerance = 0.02 if dtype == "uint8" else 1e-3
    torch.testing.assert_close(found.floats(COMPUTE.device), expected.floats(COMPUTE.device), rtol=0, atol=tolerance)


def test_a_training_that_draws_other_views_is_refused(drawn_only):
    told = r"lacks \d of the views that distill/a draws; it has those drawn by \{'distill_steps': 1, .*\}; change"
    with pytest.raises(UserError, match=told):
        drawn_only["float16"].drawn_from("distill/a", drawing("distill"), 9)


def test_all_views_are_there_for_any_training(opened):
    assert opened.open("views").drawn_from("distill/a", BatchSampler(5, "distill", FRAMES, VIEWS, 3, 0.5, 0.2), 50)
    assert opened.open("online").drawn_from("distill/a", plan_of, 50) is None
