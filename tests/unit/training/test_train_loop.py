"""The training loop computes what the formulas say, and its curve shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdistill.data.transforms import normalize
from segdistill.formats.classes import IGNORE
from segdistill.formats.curve import COLUMNS, read_curve
from segdistill.nets.resize import upsample
from segdistill.training.loop import CURVE_FILE
from support.tiny_training import (
    COMPUTE,
    CROP_PX,
    KilledError,
    TinyNet,
    assert_same,
    at,
    distilled,
    killed,
    make_job,
    make_split,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """8 steps in one go."""
    return run(tmp_path_factory.mktemp("straight"))


def test_loop_equals_plain_sgd(tmp_path):
    """Against the usual loop with torch.optim.SGD."""
    given = {"schedule": "constant", "steps": 3, "jitter": 0.0, "backbone_lr_factor": 1.0}
    net, job = TinyNet(dropout=0.0), make_job(**given)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        batch = job.batches.load(step)
        pixels = upsample(net(normalize(batch.images)), CROP_PX)
        loss = F.cross_entropy(pixels, batch.labels.long(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, curve = run(tmp_path, net=TinyNet(dropout=0.0), **given | {"log_every_steps": 1})
    torch.testing.assert_close(found.state_dict(), net.state_dict(), rtol=1e-5, atol=1e-6)
    assert curve[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_backbone_learns_at_its_own_rate(tmp_path):
    moved = []
    for factor in (1.0, 0.25):
        net, _ = run(tmp_path / str(factor), steps=1, backbone_lr_factor=factor)
        start = TinyNet()
        moved.append(
            [
                (net.backbone[0].weight - start.backbone[0].weight),
                (net.classifier[1].weight - start.classifier[1].weight),
            ]
        )
    torch.testing.assert_close(moved[1][0], 0.25 * moved[0][0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[1][1], moved[0][1])


def test_random_draws_of_other_code_do_not_matter(straight, tmp_path):
    assert_same(run(tmp_path, hook=lambda step: torch.manual_seed(0)), straight)


def test_network_given_in_eval_mode_is_trained_in_train_mode(straight, tmp_path):
    assert_same(run(tmp_path, net=TinyNet().eval()), straight)


@pytest.mark.parametrize(("kl_resolution", "size"), [("stride", (8, 8)), ("full", CROP_PX)])
def test_kl_resolution_says_where_logits_are_compared(tmp_path, kl_resolution, size):
    job = make_job(jitter=0.0, **distilled())
    batch = job.batches.load(0)
    with torch.no_grad():
        student = TinyNet(dropout=0.0)(normalize(batch.images))
    teacher = batch.teacher_logits(COMPUTE.device)
    student, teacher = (upsample(x.double(), size).log_softmax(1) for x in (student, teacher))
    expected = (teacher.exp() * (teacher - student)).sum(1).mean().item()
    given = distilled(temperature=1.0, kl_resolution=kl_resolution)
    _, curve = run(tmp_path, net=TinyNet(dropout=0.0), jitter=0.0, steps=1, **given)
    assert curve[0]["distill_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kl_resolution", ["stride", "full"])
@pytest.mark.parametrize("method", ["kl", "channel_kl", "sigmoid_kl"])
def test_loss_combines_both_losses_by_alpha(tmp_path, method, kl_resolution):
    _, curve = run(tmp_path, **distilled(alpha=0.4, method=method, temperature=2.0, kl_resolution=kl_resolution))
    for row in curve:
        assert row["distill_loss"] > 0
        assert row["loss"] == pytest.approx(0.6 * row["label_loss"] + 0.4 * 4 * row["distill_loss"], rel=1e-5)


def test_weights_of_both_losses_replace_alpha(tmp_path):
    given = distilled(alpha=None, label_weight=1.5, distill_weight=0.8)
    for row in run(tmp_path / "weights", **given)[1]:
        assert row["loss"] == pytest.approx(1.5 * row["label_loss"] + 0.8 * 4 * row["distill_loss"], rel=1e-5)
    alike = distilled(alpha=None, label_weight=1 - 0.4, distill_weight=0.4)
    assert_same(run(tmp_path / "a", **alike), run(tmp_path / "b", **distilled(alpha=0.4)))


@pytest.mark.parametrize("kl_resolution", ["stride", "full"])
def test_student_learns_only_where_the_teacher_is_right(tmp_path, kl_resolution):
    """Against the formula over the pixels of the first batch, whose flips move label and logits alike."""
    given = distilled(temperature=1.0, kl_resolution=kl_resolution, distill_where="right")
    job = make_job(jitter=0.0, **given)
    batch = job.batches.load(0)
    assert batch.indices.flips.any()
    assert not batch.indices.flips.all()
    size = CROP_PX if kl_resolution == "full" else (8, 8)
    with torch.no_grad():
        student = TinyNet(dropout=0.0)(normalize(batch.images))
    teacher = batch.teacher_logits(COMPUTE.device)
    student, teacher = (upsample(x.double(), size).log_softmax(1) for x in (student, teacher))
    stride = CROP_PX[0] // size[0]
    labels = batch.labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
    kept = (teacher.argmax(1) == labels) | (labels == IGNORE)
    assert 0 < kept.double().mean() < 1
    expected = (teacher.exp() * (teacher - student)).sum(1)[kept].mean().item()
    _, curve = run(tmp_path, net=TinyNet(dropout=0.0), jitter=0.0, steps=1, **given)
    assert curve[0]["distill_loss"] == pytest.approx(expected, rel=1e-5)


def test_with_alpha_0_the_teacher_does_not_matter(straight, tmp_path):
    net, _ = run(tmp_path, **distilled(alpha=0.0))
    torch.testing.assert_close(net.state_dict(), straight[0].state_dict())


@pytest.mark.parametrize("label_loss", ["cross_entropy", "focal"])
def test_with_alpha_1_the_labels_do_not_matter(tmp_path, label_loss):
    nets = []
    for shuffled in (False, True):
        split = make_split(shuffled)
        nets.append(run(tmp_path / str(shuffled), split=split, label_loss=label_loss, **distilled(alpha=1.0))[0])
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


def test_with_alpha_in_between_labels_and_teacher_both_matter(straight, tmp_path):
    found = run(tmp_path / "a", **distilled(alpha=0.5))[0].classifier[1].weight
    other = run(tmp_path / "b", split=make_split(True), **distilled(alpha=0.5))[0].classifier[1].weight
    assert not torch.allclose(found, straight[0].classifier[1].weight)
    assert not torch.allclose(found, other)


def test_live_teacher_equals_its_stored_logits(tmp_path):
    stored = run(tmp_path / "stored", jitter=0.0, **distilled())
    live = run(tmp_path / "live", jitter=0.0, **distilled(live_teacher=TinyNet(seed=9).eval()))
    torch.testing.assert_close(live[0].state_dict(), stored[0].state_dict(), rtol=1e-5, atol=1e-6)


def test_live_teacher_is_not_trained(tmp_path):
    teacher = TinyNet(seed=9).eval()
    run(tmp_path, **distilled(live_teacher=teacher))
    assert all(torch.equal(value, TinyNet(seed=9).state_dict()[key]) for key, value in teacher.state_dict().items())


def test_control_has_no_distillation_loss(straight):
    assert all(row["distill_loss"] == 0 and row["loss"] == row["label_loss"] for row in straight[1])


@pytest.mark.parametrize("label_loss", ["cross_entropy", "focal"])
def test_loss_falls_on_learnable_labels(tmp_path, label_loss):
    _, curve = run(tmp_path, steps=60, log_every_steps=10, schedule="constant", jitter=0.0, label_loss=label_loss)
    assert curve[-1]["loss"] < 0.4 * curve[0]["loss"]


def test_student_approaches_its_teacher(tmp_path):
    _, curve = run(tmp_path, steps=60, log_every_steps=10, jitter=0.0, net=TinyNet(dropout=0.0), **distilled(alpha=1.0))
    assert curve[-1]["distill_loss"] < 0.4 * curve[0]["distill_loss"]


def test_points_of_the_curve_are_means_over_their_interval(straight, tmp_path):
    _, each = run(tmp_path, log_every_steps=1)
    losses = [row["loss"] for row in each]
    assert [row["step"] for row in straight[1]] == [3, 6, 8]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])]
    assert [row["loss"] for row in straight[1]] == pytest.approx(expected, rel=1e-12)


def test_points_of_the_curve_have_the_lr_of_their_last_step(straight):
    expected = [0.1 * (1 - step / 8) ** 0.9 for step in (2, 5, 7)]
    assert [row["lr"] for row in straight[1]] == pytest.approx(expected)


def read_rows(root) -> list[dict]:
    return read_curve(root / "distill" / "tiny" / "key" / CURVE_FILE)


@pytest.mark.parametrize("killed_at", [None, 3, 7])
def test_curve_on_disk_has_the_same_points(tmp_path, killed_at):
    if killed_at is not None:
        with pytest.raises(KilledError):
            run(tmp_path, hook=at(killed_at, killed), log_every_steps=1)
    _, curve = run(tmp_path, log_every_steps=1)
    assert read_rows(tmp_path) == curve
    assert tuple(curve[0]) == COLUMNS


def test_curve_on_disk_grows_during_training(tmp_path):
    seen = []
    run(tmp_path, log_every_steps=2, hook=lambda step: seen.append(len(read_rows(tmp_path))))
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]


def test_holdout_is_evaluated_when_due_and_training_continues_in_train_mode(straight, tmp_path):
    def score(net: nn.Module, done: int) -> float:
        net.eval()
        return done / 10

    net, curve = run(tmp_path, holdout=score, evaluate_every_steps=6)
    assert [row["holdout_mean_iou"] for row in curve] == [None, 0.6, 0.8]
    assert_same((net, [row | {"holdout_mean_iou": None} for row in curve]), straight)
