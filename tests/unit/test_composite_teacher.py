"""Teachers of several parts: the mean of softmaxes by plain float64, mirrored, scaled, by windows; kept and opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onnx_models import cell_logits, weights, write_model
from segdistill.checkpoint import net_facts, save_net
from segdistill.class_maps import ClassMapArchive
from segdistill.composite_teacher import CompositeTeacher, MeanPrediction, asked, resized
from segdistill.compute import Compute
from segdistill.dataset import PREPARED, open_split, read_index
from segdistill.errors import InputError
from segdistill.evaluate import TorchPredictor
from segdistill.files import read_json
from segdistill.nets.registry import build
from segdistill.onnx_file import write_float32
from segdistill.onnx_teacher import OnnxTeacher
from segdistill.params_file import load_params
from segdistill.prepare import prepare
from segdistill.stored_logits import LOGITS
from segdistill.teacher import check_teacher
from segdistill.teacher_cache import FOLDER, geometry, teacher_sha256
from segdistill.teacher_folder import open_teacher
from segdistill.teacher_logits import build_cache
from segdistill.training_job import compute_of
from segdistill.transforms import MEAN, STD
from tiny_city import ARCH, tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = Compute(torch.device("cpu"), torch.float32, 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 24, 32, 3), np.uint8)
CLASSES = 3


class Cells:
    """A member whose logits are those of `cell_logits`; with `size_px` it refuses images of any other size."""

    name = "cells"

    def __init__(self, seed: int, size_px: tuple[int, int] | None = None) -> None:
        self.weights, self.size_px = weights(CLASSES, seed) / 20, size_px

    def logits(self, images_BHW3: np.ndarray) -> torch.Tensor:
        assert self.size_px is None or images_BHW3.shape[1:3] == self.size_px
        return torch.from_numpy(cell_logits(images_BHW3, self.weights)).float()


def composite(members: list, flip: bool = False, scales: tuple[float, ...] = (1.0,)) -> CompositeTeacher:
    return CompositeTeacher(members, flip, scales, CPU.device)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)  # these are small
    return powers / powers.sum(1, keepdims=True)


def mean_of(predictions: list[np.ndarray]) -> np.ndarray:
    """Logits float64 (B, C, h, w): log of the mean softmax, plus the mean logsumexp."""
    shares = np.mean([softmax(logits) for logits in predictions], axis=0)
    return np.log(shares) + np.mean([np.log(np.exp(logits).sum(1, keepdims=True)) for logits in predictions], axis=0)


def mirrored_logits(member: Cells, images_BHW3: np.ndarray) -> np.ndarray:
    return cell_logits(images_BHW3[:, :, ::-1], member.weights)[..., ::-1]


def test_one_member_asked_once_is_given_through():
    member = Cells(0)
    assert torch.equal(composite([member]).logits(IMAGES), member.logits(IMAGES))


def test_the_mean_is_that_of_the_softmaxes():
    members = [Cells(seed) for seed in range(3)]
    found = composite(members).logits(IMAGES).numpy()
    each = [cell_logits(IMAGES, member.weights) for member in members]
    np.testing.assert_allclose(found, mean_of(each), atol=1e-4)
    np.testing.assert_allclose(softmax(found), np.mean([softmax(x) for x in each], axis=0), atol=1e-5)
    assert np.abs(found - np.mean(each, axis=0)).max() > 0.1, "a mean of logits is something else"


def test_the_mean_of_equal_predictions_is_that_prediction():
    logits = torch.randn(1, 5, 2, 2) * 40
    mean = MeanPrediction()
    for _ in range(3):
        mean.add(logits)
    torch.testing.assert_close(mean.logits(), logits, atol=1e-4, rtol=1e-5)


def test_certain_predictions_stay_finite():
    mean = MeanPrediction()
    mean.add(torch.tensor([500.0, -500.0]).view(1, 2, 1, 1))
    mean.add(torch.tensor([400.0, 0.0]).view(1, 2, 1, 1))
    assert torch.isfinite(mean.logits()).all()


def test_mirrored_images_are_asked_as_well():
    member = Cells(0)
    expected = mean_of([cell_logits(IMAGES, member.weights), mirrored_logits(member, IMAGES)])
    np.testing.assert_allclose(composite([member], flip=True).logits(IMAGES), expected, atol=1e-4)


def test_a_flipped_teacher_sees_a_mirrored_street_mirrored():
    teacher = composite([Cells(0), Cells(1)], flip=True, scales=(0.5, 1.0))
    mirrored = np.ascontiguousarray(IMAGES[:, :, ::-1])
    torch.testing.assert_close(teacher.logits(mirrored), teacher.logits(IMAGES).flip(-1), atol=1e-4, rtol=1e-4)


def test_scales_are_resized_there_and_back():
    member = Cells(0)
    found = composite([member], scales=(1.0, 0.5, 2.0)).logits(IMAGES)
    each = []
    for size in ((24, 32), (12, 16), (48, 64)):
        resized_images = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR) for image in IMAGES]
        logits = torch.from_numpy(cell_logits(np.stack(resized_images), member.weights))
        each.append(torch.nn.functional.interpolate(logits, size=(6, 8), mode="bilinear").numpy())
    # Pillow's rounding may differ by one in 255, at some of the 48 pixels that a logit is a sum over.
    off = np.abs(found.numpy() - mean_of(each))
    assert off.max() < 0.2
    assert off.mean() < 0.02


def test_images_are_resized_as_pillow_does():
    for scale in (0.5, 0.75, 1.5):
        size = [round(side * scale) for side in IMAGES.shape[1:3]]
        expected = np.asarray(Image.fromarray(IMAGES[0]).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
        found = resized(IMAGES, scale)[0]
        assert found.dtype == np.uint8
        assert np.abs(found - expected).max() <= 1
    assert resized(IMAGES, 1.0) is IMAGES


def test_classes_are_those_of_the_mean():
    teacher = composite([Cells(0), Cells(1)], flip=True)
    logits, classes = teacher(IMAGES)
    full = torch.nn.functional.interpolate(logits, size=(24, 32), mode="bilinear")
    assert (classes == full.argmax(1)).float().mean() > 0.999
    assert classes.dtype == torch.uint8


@pytest.mark.parametrize("size_px", [(24, 32), (12, 16), (16, 20), (8, 8), (24, 12)])
def test_a_member_of_one_size_is_asked_window_by_window(size_px):
    # Its logits at a cell depend on that cell alone, so windows must not change them.
    found = asked(Cells(0, size_px), IMAGES)
    np.testing.assert_allclose(found, cell_logits(IMAGES, Cells(0).weights), atol=1e-4)


def test_windows_cover_sides_that_are_no_multiple():
    odd = IMAGES[:, :21, :30]
    found = asked(Cells(0, (8, 12)), odd)
    padded = np.pad(odd, ((0, 0), (0, 3), (0, 2), (0, 0)), "edge")
    np.testing.assert_allclose(found, cell_logits(padded, Cells(0).weights), atol=1e-4)


@pytest.mark.parametrize("size_px", [(28, 32), (24, 64), (10, 16)])
def test_images_that_a_member_of_one_size_cannot_take(size_px):
    with pytest.raises(InputError, match=rf"cells: takes images of \[{size_px[0]}, {size_px[1]}\] .* got \[24, 32\]"):
        asked(Cells(0, size_px), IMAGES)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """Prepared data, and what a user may have as teachers."""
    folder = tmp_path_factory.mktemp("city")
    params = tinier_params()
    prepare(params.data, params.seed, folder / PREPARED, workers=1)
    for seed, arch in enumerate((ARCH, "deeplabv3plus_mobilenet")):
        torch.manual_seed(seed)
        net, facts = build(arch, 19, 16).eval(), net_facts(arch, 19, 16)
        save_net(folder / f"net{seed}.safetensors", net, facts)
        if not seed:
            write_float32(folder / "net0.onnx", net, facts, 18, (32, 64))
    write_model(folder / "foreign.onnx", weights(19))
    return folder


@pytest.fixture
def here(city, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / PREPARED).symlink_to(city / PREPARED)
    for file in city.glob("net*"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "foreign.onnx").symlink_to(city / "foreign.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cached(params, kind: str = "views") -> np.ndarray:
    """Build the cache of `kind` from models/teacher: all logits as float32."""
    train, logits = open_split("train"), params.teacher_logits.model_copy(update={"dtype": "float32"})
    facts = geometry(train, read_index()["fingerprint"], 0, params.distill.crop_px, logits.views, logits.stride)
    build_cache(kind, FOLDER / kind, train, facts, logits, compute_of(params))
    return np.load(FOLDER / kind / LOGITS)


def with_teacher(**changed):
    return tinier_params(teacher={"arch": ARCH} | changed, compute={"precision": "float32"})


def test_an_onnx_teacher_is_its_torch_original(here):
    figures, logits, class_maps = [], [], []
    for checkpoint in ("net0.safetensors", "net0.onnx"):
        params = with_teacher(checkpoint=checkpoint)
        check_teacher(params)
        figures.append(read_json("metrics/teacher.json"))
        logits.append(cached(params))
        class_maps.append(np.stack([ClassMapArchive("models/teacher/val_classes.npz")(index) for index in range(2)]))
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert np.mean(class_maps[0] == class_maps[1]) > 0.999
    assert figures[0]["mean_iou"] == pytest.approx(figures[1]["mean_iou"], abs=1e-3)
    assert (figures[0]["arch"], figures[1]["arch"]) == (ARCH, "net0.onnx")
    assert figures[0]["parameters"] > 1e6
    assert figures[1]["parameters"] is None


def test_an_ensemble_is_scored_and_stored_as_the_mean_of_its_members(here):
    params = with_teacher(checkpoint=("net0.onnx", "net1.safetensors", "foreign.onnx"), flip=True)
    check_teacher(params)
    found = read_json("metrics/teacher.json")
    assert found["arch"] == "net0.onnx + net1.safetensors + foreign.onnx, flipped"
    assert {path.name for path in Path("models/teacher").iterdir()} == {
        "teacher.json",
        "0.onnx",
        "1.safetensors",
        "2.onnx",
        "val_classes.npz",
    }
    members = [open_member(name) for name in ("net0.onnx", "net1.safetensors", "foreign.onnx")]
    expected = composite(members, flip=True)
    val = np.array(open_split("val").images)
    classes = expected(val)[1].numpy()
    archive = ClassMapArchive("models/teacher/val_classes.npz")
    assert np.mean([archive(index) == classes[index] for index in range(2)]) > 0.999
    train = np.array(open_split("train").images[:1])
    frame = cached(params, "frame")[:1]
    np.testing.assert_allclose(frame, expected.logits(train).permute(0, 2, 3, 1), atol=1e-3)
    manifest = read_json(FOLDER / "frame" / "manifest.json")
    assert manifest["teacher_sha256"] == found["weights_sha256"] == teacher_sha256(Path("models/teacher"))


def open_member(name: str):
    if name.endswith(".onnx"):
        return OnnxTeacher(name, 19, 1, MEAN, STD)
    torch.manual_seed(1)
    return TorchPredictor(build("deeplabv3plus_mobilenet", 19, 16), CPU)


def test_a_trained_teacher_can_be_asked_twice(here):
    check_teacher(with_teacher(flip=True, scales=(1.0, 0.5)))
    found = read_json("metrics/teacher.json")
    assert found["arch"] == f"{ARCH}, flipped, at scales 1 0.5"
    assert found["parameters"] > 1e6
    assert not Path("models/teacher/teacher.safetensors").exists()


def test_every_setting_makes_another_teacher(here):
    hashes = []
    for changed in (
        {"flip": True},
        {"scales": (1.0, 2.0)},
        {"onnx_mean": (0.0, 0.0, 0.0)},
        {"checkpoint": "net0.onnx"},
    ):
        check_teacher(with_teacher(**({"checkpoint": "foreign.onnx"} | changed)))
        hashes.append(teacher_sha256(Path("models/teacher")))
    assert len(set(hashes)) == 4
    check_teacher(with_teacher(checkpoint="net0.onnx"))
    assert teacher_sha256(Path("models/teacher")) == hashes[-1]


def test_a_changed_file_of_the_teacher_is_refused(here):
    check_teacher(with_teacher(checkpoint=("net0.onnx", "net1.safetensors")))
    content = Path("models/teacher/0.onnx").read_bytes()
    Path("models/teacher/0.onnx").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"0\.onnx: not the file that teacher\.json names; run: dvc repro teacher-ch"):
        open_teacher(Path("models/teacher"), CPU)


def test_a_network_of_other_classes_is_refused(here):
    write_model(here / "five.onnx", weights(5))
    with pytest.raises(InputError, match=r"teacher\.checkpoint: five\.onnx: found output out .*; allowed is one of 19"):
        check_teacher(with_teacher(checkpoint="five.onnx"))
    facts = net_facts(ARCH, 19, 16) | {"class_names": [f"class {number}" for number in range(19)]}
    torch.manual_seed(0)
    save_net("named.safetensors", build(ARCH, 19, 16), facts)
    for checkpoint in ("named.safetensors", ("named.safetensors", "net0.onnx")):
        with pytest.raises(
            InputError, match=r"named\.safetensors: found the classes class 0, .*those of the data.*road"
        ):
            check_teacher(with_teacher(checkpoint=checkpoint))
    assert not Path("models/teacher").exists()


def test_online_needs_a_single_torch_network(here):
    params = with_teacher(checkpoint="net0.onnx")
    check_teacher(params)
    with pytest.raises(InputError, match=r"teacher_logits\.kinds: found online; net0\.onnx is more than one torch"):
        cached(params, "online")
    assert not (FOLDER / "online").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": []}, "teacher.checkpoint: found []; allowed are one or more, each once"),
        ({"checkpoint": ["a.pth", "a.pth"]}, "teacher.checkpoint: found ['a.pth', 'a.pth']; allowed are one or more"),
        ({"scales": []}, "teacher.scales: found []"),
        ({"scales": [1.0, 0]}, "teacher.scales.1: found 0"),
        ({"scales": [0.5, 0.5]}, "teacher.scales: found [0.5, 0.5]; allowed are one or more, each once"),
        ({"onnx_std": [1, 1, 0]}, "teacher.onnx_std.2: found 0"),
        ({"onnx_mean": [0.5]}, "teacher.onnx_mean.1"),
        ({"checkpoint": 3}, "teacher.checkpoint"),
        ({"flip": True, "kinds": ["online"]}, "teacher_logits.kinds: found online with the teacher {arch}, flipped;"),
        ({"checkpoint": "t.onnx", "kinds": ["online"]}, "teacher_logits.kinds: found online with the teacher t.onnx;"),
    ],
)
def test_params_that_are_not_allowed(tmp_path, changes, said):
    raw = json.loads(tinier_params().model_dump_json(exclude_none=False))
    kinds = changes.get("kinds")
    raw["teacher"] |= {key: value for key, value in changes.items() if key != "kinds"}
    if kinds:
        raw["teacher_logits"]["kinds"] = kinds
        raw["runs"] = {name: run for name, run in raw["runs"].items() if run["teacher"] == "none"}
    (tmp_path / "params.yaml").write_text(json.dumps(raw))
    with pytest.raises(InputError) as refused:
        load_params(tmp_path / "params.yaml")
    assert said.format(arch=ARCH) in str(refused.value)
