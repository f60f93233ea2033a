"""The teacher's stored logits: what the live teacher gives on the same crop, and refused when they are another's."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from segdistill.checkpoint import net_facts, save_net
from segdistill.class_maps import write_archive
from segdistill.compute import Compute
from segdistill.dataset import Split, open_split
from segdistill.errors import InputError
from segdistill.files import write_json
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.params import TeacherLogitsParams
from segdistill.provenance import file_sha256
from segdistill.rng import Batches
from segdistill.stored_logits import LOGITS, SCALE
from segdistill.teacher_cache import Teaching, geometry, origins_of
from segdistill.teacher_logits import build_cache
from segdistill.transforms import cut, normalised

pytestmark = pytest.mark.usefixtures("one_thread")
ARCH, CLASSES, FRAMES = "deeplabv3plus_mobilenet", 6, 3
FRAME_PX, CROP_PX, VIEWS, STRIDE = (48, 80), (32, 48), 2, 4
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)
CHANGES = {  # what else a cache may have been made from
    "seed": 2,
    "crop_px": [32, 32],
    "data_fingerprint": "other",
    "stride": 8,
    "views": 3,
    "frames": 4,
    "frame_px": [48, 96],
    "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
}


def logits_params(dtype="float16", stride=STRIDE, kinds=("views",)) -> TeacherLogitsParams:
    return TeacherLogitsParams(kinds=kinds, views=VIEWS, stride=stride, dtype=dtype, batch_size=4)


def stored_logits(teaching: Teaching) -> np.ndarray:
    """All logits of a cache as they lie on disk."""
    return np.array(np.load(teaching.folder / LOGITS))


def floats(teaching: Teaching, flip_probability: float = 0.0) -> np.ndarray:
    """The logits of a planned batch as the loss gets them, float32 (B, h, w, C)."""
    plan = plan_of(flip_probability)
    crops = teaching.stored.cut(plan, origins_of(teaching.facts)[plan.frames, plan.views])
    return crops.floats(COMPUTE.device).permute(0, 2, 3, 1).numpy()


def facts_of(split: Split, stride: int = STRIDE) -> dict:
    return geometry(split, "data", 1, CROP_PX, VIEWS, stride)


def write_prepared(root) -> None:
    """A prepared train split of smooth noise, in which neighbouring pixels resemble each other."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (FRAMES, 3, 6, 10))).float()
    images = upsample(coarse, FRAME_PX).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    (root / "train").mkdir(parents=True)
    np.save(root / "train" / "images.npy", images)
    np.save(root / "train" / "labels.npy", rng.integers(0, CLASSES, images.shape[:3], np.uint8))
    splits = {"train": {"frames": [{"name": f"street{i}"} for i in range(FRAMES)]}}
    write_json(root / "index.json", {"fingerprint": "data", "classes": ["road"], "splits": splits})


def write_teacher(folder, scale: float = 1.0, spoil: float | None = None) -> None:
    torch.manual_seed(0)
    net = build(ARCH, CLASSES)
    with torch.no_grad():
        last = net.classifier.classifier[-1]
        last.weight *= scale
        if spoil is not None:
            last.weight[0, 0] = spoil
    save_net(folder / "teacher.safetensors", net, net_facts(ARCH, CLASSES, 16))
    write_archive(folder / "val_classes.npz", {0: np.full(FRAME_PX, 3, np.uint8)})


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a teacher, prepared data, and a cache of each kind in data/teacher_logits; read only."""
    folder = tmp_path_factory.mktemp("project")
    write_prepared(folder / "data" / "prepared")
    write_teacher(folder / "models" / "teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        split = open_split("train")
        for kind in ("views", "frame", "online"):
            out = folder / "data" / "teacher_logits" / kind
            build_cache(kind, out, split, facts_of(split), logits_params(), COMPUTE)
    return folder


@pytest.fixture
def opened(project, monkeypatch):
    """In the project: its train split, and `open(kind)`."""
    monkeypatch.chdir(project)
    split = open_split("train")
    return SimpleNamespace(split=split, facts=facts_of(split), open=lambda kind: Teaching(kind, facts_of(split)))


@pytest.fixture
def copied(project, tmp_path):
    """A cache of views that may be spoilt."""
    return shutil.copytree(project / "data" / "teacher_logits" / "views", tmp_path / "views")


@torch.inference_mode()
def live_logits(teacher: torch.nn.Module, images_BHW3: np.ndarray) -> torch.Tensor:
    return teacher(normalised(torch.from_numpy(images_BHW3)))


def all_views(split: Split, facts: dict) -> np.ndarray:
    """Every crop view, uint8 (N * K, H, W, 3), cut by slicing."""
    crops = []
    for image, corners in zip(split.images, origins_of(facts), strict=True):
        crops += [image[top : top + CROP_PX[0], left : left + CROP_PX[1]] for top, left in corners]
    return np.stack(crops)


def plan_of(flip_probability: float):
    return Batches(0, "distill", FRAMES, VIEWS, 6, flip_probability, 0.0).plan(0)


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


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("kind", ["views", "frame"])
@pytest.mark.parametrize("teacher", [{"spoil": float("nan")}, {"scale": 1e12}])
def test_logits_that_are_not_finite_leave_no_cache(opened, tmp_path, monkeypatch, kind, teacher, dtype):
    write_teacher(tmp_path / "models" / "teacher", **teacher)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"logit of frame street0 is not finite as {dtype}; no cache written"):
        build_cache(kind, tmp_path / "out" / kind, opened.split, opened.facts, logits_params(dtype), COMPUTE)
    assert list((tmp_path / "out").iterdir()) == []


def test_logits_that_are_not_finite_leave_an_earlier_cache_as_it_was(opened, copied, tmp_path, monkeypatch):
    write_teacher(tmp_path / "models" / "teacher", spoil=float("inf"))
    monkeypatch.chdir(tmp_path)
    before = {file.name: file.read_bytes() for file in copied.iterdir()}
    with pytest.raises(InputError, match="no cache written"):
        build_cache("views", copied, opened.split, opened.facts, logits_params(), COMPUTE)
    assert {file.name: file.read_bytes() for file in copied.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "views"]


@pytest.mark.parametrize("key", CHANGES)
def test_a_cache_of_something_else_is_refused(opened, copied, key):
    with pytest.raises(InputError, match=f"{key} is .* there, .* is needed"):
        Teaching("views", opened.facts | {key: CHANGES[key]}, copied)


def test_a_cache_of_another_kind_is_refused(opened, copied):
    with pytest.raises(InputError, match="kind is 'views' there, 'frame' is needed"):
        Teaching("frame", opened.facts, copied)


@pytest.fixture
def in_8_bits(opened, tmp_path):
    """A cache of views as uint8, that may be spoilt."""
    build_cache("views", tmp_path / "uint8", opened.split, opened.facts, logits_params("uint8"), COMPUTE)
    return tmp_path / "uint8"


def test_a_cache_that_fits_is_opened(opened, copied, in_8_bits):
    for folder in (copied, in_8_bits):
        assert floats(Teaching("views", opened.facts, folder)).shape == (6, 8, 12, CLASSES)


@pytest.mark.parametrize("name", [LOGITS, SCALE])
@pytest.mark.parametrize("kept_bytes", [0, 50, 300])
def test_truncated_arrays_are_refused(opened, in_8_bits, name, kept_bytes):
    whole = (in_8_bits / name).read_bytes()
    assert len(whole) > 400
    (in_8_bits / name).write_bytes(whole[:kept_bytes])
    with pytest.raises(InputError, match=rf"{name}: unreadable .*; run: dvc repro teacher-logits"):
        Teaching("views", opened.facts, in_8_bits)


def test_an_array_with_bytes_behind_it_is_refused(opened, copied):
    with (copied / LOGITS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"logits\.npy: unreadable \(\d+ bytes, its header describes \d+\)"):
        Teaching("views", opened.facts, copied)


@pytest.mark.parametrize("name", [LOGITS, SCALE])
def test_a_missing_array_is_refused(opened, in_8_bits, name):
    (in_8_bits / name).unlink()
    with pytest.raises(InputError, match=f"{name}: unreadable"):
        Teaching("views", opened.facts, in_8_bits)


def test_logits_of_another_shape_are_refused(opened, copied):
    np.save(copied / LOGITS, np.zeros((FRAMES, VIEWS, 8, 12, CLASSES + 1), np.float16))
    with pytest.raises(
        InputError, match=r"holds float16 \[3, 2, 8, 12, 7\], its manifest says float16 \[3, 2, 8, 12, 6"
    ):
        Teaching("views", opened.facts, copied)


def test_logits_of_another_precision_are_refused(opened, copied, in_8_bits):
    shutil.copyfile(copied / LOGITS, in_8_bits / LOGITS)
    with pytest.raises(InputError, match=r"holds float16 .*, its manifest says uint8"):
        Teaching("views", opened.facts, in_8_bits)


def forget(folder: Path, *path: str) -> None:
    """Take the entry at `path` out of the manifest in `folder`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    *sections, key = path
    del functools.reduce(dict.__getitem__, sections, manifest)[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_that_describes_no_arrays_is_refused(opened, copied):
    forget(copied, "arrays")
    with pytest.raises(InputError, match="its manifest describes no arrays"):
        Teaching("views", opened.facts, copied)


def test_bytes_without_their_scale_are_refused(opened, in_8_bits):
    forget(in_8_bits, "arrays", SCALE)
    with pytest.raises(InputError, match=r"its manifest describes logits\.npy alone"):
        Teaching("views", opened.facts, in_8_bits)


def test_a_manifest_without_a_teacher_is_refused(opened, copied):
    forget(copied, "teacher_sha256")
    with pytest.raises(InputError, match="its manifest names no teacher"):
        Teaching("views", opened.facts, copied)


@pytest.mark.parametrize("spoil", ["missing folder", "no manifest", "no JSON"])
def test_a_folder_without_a_manifest_is_refused(opened, copied, spoil):
    if spoil == "missing folder":
        shutil.rmtree(copied)
    elif spoil == "no manifest":
        (copied / "manifest.json").unlink()
    else:
        (copied / "manifest.json").write_text(json.dumps(opened.facts)[:40])
    with pytest.raises(InputError, match="no readable manifest.*dvc repro teacher-logits"):
        Teaching("views", opened.facts, copied)


def test_images_and_logits_are_cut_at_the_same_places(opened):
    plan = plan_of(0.0)
    origins = origins_of(opened.facts)[plan.frames, plan.views]
    images = np.empty((6, *CROP_PX, 3), np.uint8)
    cut(opened.split.images, plan.frames, origins, plan.flips, CROP_PX, images)
    live = live_logits(opened.open("online").live_teacher(COMPUTE), images)
    expected = upsample(live, (8, 12)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(floats(opened.open("views")), expected, rtol=2**-10, atol=1e-4)
