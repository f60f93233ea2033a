"""Runs that learn features: from the cache to weights of the usual form, and what is refused."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.core.provenance import file_sha256
from segdistill.nets import registry
from segdistill.nets.weights import load_net, read_state
from segdistill.student import run as student_run
from segdistill.student.run import distill, finetune
from segdistill.training.checkpoint import Checkpointer
from support.tiny_city import build_logits, tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")
RUNS = {
    "vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
    "logits": {"alpha": 0.5, "lr": 0.01, "teacher": "views"},
    "features": {"alpha": 0.5, "lr": 0.01, "teacher": "views", "feature_weight": 0.5},
    "averaged": {"alpha": 0.5, "lr": 0.01, "teacher": "views", "feature_weight": 0.5, "ema_decay": 0.9},
}


def params_of(channels=8, **runs):
    return tinier_params(teacher_logits={"feature_channels": channels}, runs=RUNS | runs)


@pytest.fixture
def here(city, monkeypatch):
    monkeypatch.chdir(city)


def weights(run: str, name: str = "distilled") -> Path:
    return Path(f"models/runs/{run}/{name}.safetensors")


def curve(run: str, phase: str) -> list[dict]:
    with Path(f"metrics/runs/{run}/{phase}_curve.csv").open() as stream:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(stream)]


def share_of_features(row: dict) -> float:
    return row["loss"] - 0.5 * row["label_loss"] - 0.5 * row["distill_loss"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("run", ["features", "averaged"])
def test_weights_have_the_usual_form_and_the_same_bytes_twice(run):
    distill(params_of(), "logits")
    distill(params_of(), run)
    first = file_sha256(weights(run))
    assert set(read_state(weights(run))) == set(read_state(weights("logits")))
    load_net(weights(run))
    distill(params_of(), run)
    assert file_sha256(weights(run)) == first != file_sha256(weights("logits"))


@pytest.mark.usefixtures("here")
def test_first_steps_learn_features_and_further_steps_do_not():
    distill(params_of(), "features")
    finetune(params_of(), "features")
    assert all(share_of_features(row) > 0.1 for row in curve("features", "distill"))
    assert all(abs(share_of_features(row)) < 1e-5 for row in curve("features", "finetune"))
    assert set(read_state(weights("features", "finetuned"))) == set(read_state(weights("features")))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "student", ["ddrnet23_slim", "pidnet_s", "lraspp_mobilenet_v3_large", "deeplabv3plus_mobilenet"]
)
def test_students_of_every_kind_learn_features(student):
    stride = 8 if student in ("ddrnet23_slim", "pidnet_s") else 16
    own = RUNS["features"] | {"student": student, "output_stride": stride, "steps": 1, "batch_size": 4}
    params = params_of(own=own)
    # In bfloat16 the statistics of the one cell that DDRNet and PIDNet make of so small crops are useless.
    compute = params.compute.model_copy(update={"precision": "float32"})
    distill(params.model_copy(update={"compute": compute}), "own")
    net, _ = load_net(weights("own"))
    assert not hasattr(net, "feature_projection")
    assert curve("own", "distill")[0]["loss"] > 0


@pytest.mark.usefixtures("here")
def test_killed_run_with_features_ends_with_the_same_bytes(monkeypatch):
    params = params_of()
    params = params.model_copy(update={"distill": params.distill.model_copy(update={"checkpoint_every_steps": 1})})
    distill(params, "averaged")
    wanted = file_sha256(weights("averaged"))
    save = Checkpointer.save

    def save_and_die(self, state):
        save(self, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpointer, "save", save_and_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            distill(params, "averaged")
    monkeypatch.setattr(Checkpointer, "save", save)
    distill(params, "averaged")
    assert file_sha256(weights("averaged")) == wanted


def test_cache_without_features_is_refused(city, tmp_path, monkeypatch):
    for name in ("data", "models", "metrics"):
        shutil.copytree(city / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    build_logits(params_of(channels=0, features=RUNS["logits"], averaged=RUNS["logits"]))
    message = (
        r"runs\.features\.feature_weight: found 0\.5; data/teacher_logits/views has no features of the teacher; set "
        r"teacher_logits\.feature_channels and run: dvc repro teacher-logits, or allowed is 0"
    )
    with pytest.raises(UserError, match=message):
        distill(params_of(), "features")
    distill(params_of(), "logits")


@pytest.mark.usefixtures("here")
def test_student_without_features_is_refused(monkeypatch):
    monkeypatch.setattr(student_run, "initial_net", lambda *_: torch.nn.Conv2d(3, 19, 1))
    message = r"runs\.features\.feature_weight: found 0\.5; the network deeplabv3_mobilenet_lite has no method features"
    with pytest.raises(UserError, match=message):
        distill(params_of(), "features")


def test_networks_give_features_next_to_their_own_logits():
    image = torch.randn(2, 3, 64, 96)
    for arch, channels, stride in (
        ("deeplabv3plus_mobilenet", 320, 16),
        ("deeplabv3_mobilenet_v3_large", 960, 16),
        ("lraspp_mobilenet_v3_large", 960, 16),
        ("ddrnet23_slim", 128, 8),
        ("pidnet_s", 128, 8),
    ):
        torch.manual_seed(0)
        net = registry.build(arch, 5, 8 if stride == 8 else 16).eval()
        with torch.no_grad():
            features, logits = net.features_and_logits(image)
            assert torch.equal(logits, net(image))
        assert tuple(features.shape) == (2, channels, 64 // stride, 96 // stride)
