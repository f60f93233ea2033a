"""Teachers of ONNX files, of several files, or run more than once per image: stored, opened, scored and cached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.data.prepared import PreparedData
from segdistill.data.teacher_cache import teacher_sha256
from segdistill.export.onnx_file import write_float32
from segdistill.formats.classes import ClassTable
from segdistill.formats.header import KEY, MEAN, STD, Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.nets.weights import save_net
from segdistill.params.read import load_params
from segdistill.paths import PREPARED, TEACHER_LOGITS
from segdistill.prepare.run import prepare
from segdistill.scoring.evaluate import classes_of
from segdistill.scoring.record import ClassMapArchive
from segdistill.teacher.check import check_teacher
from segdistill.teacher.model import EnsembleTeacher, open_teacher
from segdistill.teacher.onnx_teacher import OnnxTeacher
from segdistill.teacher_logits.build import teacher_logits
from support.cached_teacher import LOGITS
from support.onnx_models import weights, write_model
from support.tiny_city import ARCH, tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = Compute(torch.device("cpu"), torch.float32, 1)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    """Prepared data, and what a user may have as teachers."""
    folder = tmp_path_factory.mktemp("city")
    params = tinier_params()
    prepare(params.data, params.seed, folder / PREPARED, workers=1)
    for seed, arch in enumerate((ARCH, "deeplabv3plus_mobilenet")):
        torch.manual_seed(seed)
        net, header = build(arch, 19, 16).eval(), Header.of_net(arch, 19, 16)
        save_net(folder / f"net{seed}.safetensors", net, header)
        if not seed:
            write_float32(folder / "net0.onnx", net, header, 18, (32, 64))
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
    """Build the cache of `kind` from models/teacher, and return all logits as float32."""
    in_float32 = params.teacher_logits.model_copy(update={"dtype": "float32"})
    teacher_logits(params.model_copy(update={"teacher_logits": in_float32}), kind)
    return np.load(TEACHER_LOGITS / kind / LOGITS)


def with_teacher(**changed):
    return tinier_params(teacher={"arch": ARCH} | changed, compute={"precision": "float32"})


def test_onnx_teacher_equals_its_torch_original(here):
    metrics, logits, class_maps = [], [], []
    for checkpoint in ("net0.safetensors", "net0.onnx"):
        params = with_teacher(checkpoint=checkpoint)
        check_teacher(params)
        metrics.append(read_json("metrics/teacher.json"))
        logits.append(cached(params))
        class_maps.append(np.stack([ClassMapArchive("models/teacher/val_classes.npz")(index) for index in range(2)]))
    np.testing.assert_allclose(*logits, atol=1e-4)
    assert np.mean(class_maps[0] == class_maps[1]) > 0.999
    assert metrics[0]["mean_iou"] == pytest.approx(metrics[1]["mean_iou"], abs=1e-3)
    assert (metrics[0]["arch"], metrics[1]["arch"]) == (ARCH, "net0.onnx")
    assert metrics[0]["parameters"] > 1e6
    assert metrics[1]["parameters"] is None


def test_ensemble_is_scored_and_cached_as_the_mean_of_its_members(here):
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
    opened = open_teacher(Path("models/teacher"), CPU).predict.members
    assert [opened[0].name, opened[2].name] == ["net0.onnx", "foreign.onnx"]  # of the user's files, in messages
    members = [open_member(name) for name in ("net0.onnx", "net1.safetensors", "foreign.onnx")]
    expected = EnsembleTeacher(members, flip=True, scales=(1.0,), device=CPU.device)
    val = np.array(PreparedData.open().val.images)
    classes = classes_of(expected.logits(val), val.shape[1:3]).numpy()
    archive = ClassMapArchive("models/teacher/val_classes.npz")
    assert np.mean([archive(index) == classes[index] for index in range(2)]) > 0.999
    train = np.array(PreparedData.open().train.images[:1])
    frame = cached(params, "frame")[:1]
    np.testing.assert_allclose(frame, expected.logits(train).permute(0, 2, 3, 1), atol=1e-3)
    manifest = read_json(TEACHER_LOGITS / "frame" / "manifest.json")
    assert manifest["teacher_sha256"] == found["weights_sha256"] == teacher_sha256(Path("models/teacher"))


def open_member(name: str):
    if name.endswith(".onnx"):
        return OnnxTeacher(name, 19, 1, MEAN, STD)
    torch.manual_seed(1)
    return TorchPredictor(build("deeplabv3plus_mobilenet", 19, 16), CPU)


def test_trained_teacher_can_run_flipped_and_scaled(here):
    check_teacher(with_teacher(flip=True, scales=(1.0, 0.5)))
    found = read_json("metrics/teacher.json")
    assert found["arch"] == f"{ARCH}, flipped, at scales 1 0.5"
    assert found["parameters"] > 1e6
    assert not Path("models/teacher/teacher.safetensors").exists()


def test_every_setting_changes_the_hash_of_the_teacher(here):
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


def test_changed_file_of_the_teacher_is_refused(here):
    check_teacher(with_teacher(checkpoint=("net0.onnx", "net1.safetensors")))
    content = Path("models/teacher/0.onnx").read_bytes()
    Path("models/teacher/0.onnx").write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"0\.onnx: not the file that teacher\.json names; run: dvc repro teacher-ch"):
        open_teacher(Path("models/teacher"), CPU)


def test_onnx_teacher_of_an_earlier_build_opens_under_the_name_of_its_copy(here):
    check_teacher(with_teacher(checkpoint="foreign.onnx"))
    stored = read_json("models/teacher/teacher.json")
    del stored["members"][0]["given"]
    Path("models/teacher/teacher.json").write_text(json.dumps(stored))
    assert open_teacher(Path("models/teacher"), CPU).predict.members[0].name == "0.onnx"


def test_network_of_other_classes_is_refused(here):
    write_model(here / "five.onnx", weights(5))
    with pytest.raises(UserError, match=r"teacher\.checkpoint: five\.onnx: found output out .*; allowed is one of 19"):
        check_teacher(with_teacher(checkpoint="five.onnx"))
    other = ClassTable(tuple(f"class {number}" for number in range(19)), tuple(range(19)), ((0, 0, 0),) * 19)
    torch.manual_seed(0)
    save_net("named.safetensors", build(ARCH, 19, 16), Header.of_net(ARCH, other, 16))
    for checkpoint in ("named.safetensors", ("named.safetensors", "net0.onnx")):
        with pytest.raises(
            UserError, match=r"named\.safetensors: found the classes class 0, .*those of the data.*road"
        ):
            check_teacher(with_teacher(checkpoint=checkpoint))
    assert not Path("models/teacher").exists()


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_onnx_logits_that_are_not_finite_replace_nothing(here, spoilt, scales):
    check_teacher(with_teacher(checkpoint="net0.onnx"))
    before = teacher_sha256(Path("models/teacher"))
    bad = weights(19)
    bad[3] = spoilt
    write_model(here / "bad.onnx", bad)
    with pytest.raises(UserError, match=r"teacher\.checkpoint: .*\.onnx: found logits that are not finite"):
        check_teacher(with_teacher(checkpoint="bad.onnx", scales=scales))
    assert teacher_sha256(Path("models/teacher")) == before


def test_network_whose_logits_overflow_replaces_nothing(here):
    net = build(ARCH, 19, 16)
    for value in net.parameters():
        value.data.fill_(1e30)
    save_net("huge.safetensors", net, Header.of_net(ARCH, 19, 16))
    with pytest.raises(UserError, match=r"mean_loss on val is nan: its logits are not finite"):
        check_teacher(with_teacher(checkpoint="huge.safetensors"))
    assert not Path("models/teacher").exists()


@pytest.mark.parametrize("text", ["{", '{"arch": "a", "classes": 19, "output_stride": 16, "class_names": [1]}'])
def test_file_with_a_damaged_header_is_refused(here, text):
    save_file(load_file("net0.safetensors"), "bad.safetensors", metadata={KEY: text})
    model = onnx.load("net0.onnx")
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, "bad.onnx")
    for file in ("bad.safetensors", "bad.onnx"):
        with pytest.raises(UserError, match=rf"{file}: its header does not describe a network"):
            check_teacher(with_teacher(checkpoint=file))


def test_online_needs_a_single_torch_network(here):
    params = with_teacher(checkpoint="net0.onnx")
    check_teacher(params)
    with pytest.raises(UserError, match=r"teacher_logits\.kinds: found online; net0\.onnx is more than one torch"):
        cached(params, "online")
    assert not (TEACHER_LOGITS / "online").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_params_that_are_not_allowed(tmp_path, changes, message):
    raw = json.loads(tinier_params().model_dump_json(exclude_none=False))
    kinds = changes.get("kinds")
    raw["teacher"] |= {key: value for key, value in changes.items() if key != "kinds"}
    if kinds:
        raw["teacher_logits"]["kinds"] = kinds
        raw["runs"] = {name: run for name, run in raw["runs"].items() if run["teacher"] == "none"}
    (tmp_path / "params.yaml").write_text(json.dumps(raw))
    with pytest.raises(UserError) as refused:
        load_params(tmp_path / "params.yaml")
    assert message.format(arch=ARCH) in str(refused.value)
