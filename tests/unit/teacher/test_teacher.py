"""teacher-check: a given teacher is stored unchanged, a missing one is trained, and a weak one stops the pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.data.prepared import PreparedData
from segdistill.formats.header import Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.nets.weights import load_net, save_net
from segdistill.params.model import Params
from segdistill.paths import PREPARED
from segdistill.prepare.run import prepare
from segdistill.scoring.evaluate import classes_of
from segdistill.scoring.record import ClassMapArchive, ValRecord
from segdistill.teacher.check import check_teacher
from support.tiny_city import ARCH, tinier_params


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    folder = tmp_path_factory.mktemp("city")
    params = tiny_params()
    prepare(params.data, params.seed, folder / PREPARED, workers=1)
    return folder


@pytest.fixture
def here(city, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / PREPARED).symlink_to(city / PREPARED)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny_params(**teacher) -> Params:
    return tinier_params(teacher=teacher)


def seeded_net() -> torch.nn.Module:
    torch.manual_seed(7)
    return build(ARCH, 19, 16)


@pytest.mark.parametrize("form", ["public", "bare", "safetensors"])
def test_given_teacher_is_stored_unchanged(here, form):
    net = seeded_net()
    file = here / ("best.safetensors" if form == "safetensors" else "best.pth")
    if form == "safetensors":
        save_net(file, net, Header.of_net(ARCH, 19, 16))
    else:
        torch.save({"model_state": net.state_dict(), "cur_itrs": 3} if form == "public" else net.state_dict(), file)
    check_teacher(tiny_params(checkpoint=str(file)))
    kept, header = load_net("models/teacher/teacher.safetensors")
    assert all(torch.equal(kept.state_dict()[key], value) for key, value in net.state_dict().items())
    assert header.arch == ARCH
    assert 0 <= read_json("metrics/teacher.json")["mean_iou"] <= 1


def test_keys_that_change_no_weight_change_no_byte_of_the_teacher(here):
    check_teacher(tiny_params())
    before = Path("models/teacher/teacher.safetensors").read_bytes()
    check_teacher(tiny_params(checkpoint_every_steps=1, min_mean_iou=1e-6))
    assert Path("models/teacher/teacher.safetensors").read_bytes() == before


def test_network_of_a_student_that_cannot_be_is_found_before_the_training(here, monkeypatch):
    other = "lraspp_mobilenet_v3_large"
    monkeypatch.setattr(f"segdistill.networks.{other}.build", lambda classes, _: torch.nn.Conv2d(3, classes + 1, 1))
    runs = {"vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none", "student": other}}
    with pytest.raises(UserError, match=rf"{other}\.py: .*needed are logits"):
        check_teacher(tinier_params(runs=runs))
    assert not Path("scratch").exists()


def test_class_maps_of_val_are_those_of_the_teacher(here):
    torch.save(seeded_net().state_dict(), here / "best.pth")
    check_teacher(tiny_params(checkpoint="best.pth"))
    val, archive = PreparedData.open().val, ClassMapArchive("models/teacher/val_classes.npz")
    predictor = TorchPredictor(seeded_net(), Compute(torch.device("cpu"), torch.float32, 1))
    for index in range(len(val)):
        logits = predictor.logits(np.array(val.images[index : index + 1]))
        assert np.array_equal(archive(index), classes_of(logits, val.size_px)[0].numpy())
    record = ValRecord(Path("metrics/val"))
    for index in range(len(val)):
        assert np.array_equal(record.classes(index), archive(index))
        assert np.array_equal(record.classes(index, "truth"), val.labels[index])


def test_weak_teacher_stops_with_a_table_and_writes_nothing(here):
    torch.save(seeded_net().state_dict(), here / "best.pth")
    with pytest.raises(UserError, match=r"(?s)teacher\.min_mean_iou: .* at least 0\.9 .*road +0\.\d{3}.*bicycle"):
        check_teacher(tiny_params(checkpoint="best.pth", min_mean_iou=0.9))
    assert not Path("models/teacher").exists()
    assert not Path("metrics/teacher.json").exists()


def test_teacher_without_a_checkpoint_is_trained(here):
    check_teacher(tiny_params())
    curve = Path("metrics/teacher_curve.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in curve[1:]] == ["1", "2"]
    assert load_net("models/teacher/teacher.safetensors")[1].step == 2
    assert not list(Path("scratch/teacher").glob("*/state.pt")), "a finished training leaves no checkpoint"


def test_unknown_backbone_of_a_student_stops_before_the_teachers_training(here):
    runs = {
        "vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
        "other": {
            "student": "lraspp_timm",
            "backbone": "tf_efficientnet_lite9",
            "alpha": 0.3,
            "lr": 0.01,
            "teacher": "views",
        },
    }
    with pytest.raises(UserError, match=r"^runs\.other\.backbone: timm has no model named 'tf_efficientnet_lite9'"):
        check_teacher(tinier_params(runs=runs))
    assert [path.name for path in here.iterdir()] == ["data"]


def test_unknown_backbone_of_the_teacher_is_named(here):
    network = {"arch": "lraspp_timm", "backbone": "tf_efficientnet_lite9"}
    with pytest.raises(UserError, match=r"^teacher\.backbone: timm has no model named"):
        check_teacher(tiny_params(**network))
