"""The feature loss in the training loop: its value, its gradients, mixed and flipped crops, resuming, averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdistill.data.sampling import BatchSampler
from segdistill.data.teacher_cache import StoredLogits
from segdistill.data.transforms import normalize
from segdistill.nets.resize import upsample
from segdistill.student.distillation import add_feature_projection, kl
from segdistill.teacher_logits.writer import quantize
from segdistill.training.batches import CropLoader
from segdistill.training.loop import update
from segdistill.training.mixing import Mixer
from segdistill.training.optimizers import make_optimizer
from support.tiny_training import (
    CROP_PX,
    FRAMES,
    VIEWS,
    FeaturesOfATeacher,
    KilledError,
    TinyNet,
    assert_same,
    at,
    distilled,
    killed,
    make_job,
    make_split,
    origins,
    run,
)

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PLAIN = {"schedule": "constant", "steps": 3, "jitter": 0.0, "backbone_lr_factor": 1.0, "log_every_steps": 1}


def with_features(weight=0.5, **given) -> dict:
    """Arguments of a job that learns from stored logits and features."""
    return distilled(feature_weight=weight, **given) | {"features": FeaturesOfATeacher(TinyNet(seed=9), make_split())}


def test_loss_adds_the_weighted_error_of_the_projected_features(tmp_path):
    given = PLAIN | with_features(alpha=0.4, temperature=2.0, kl_resolution="stride")
    net, job = TinyNet(dropout=0.0), make_job(**given)
    projection = add_feature_projection(net, 4, job.settings.seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        batch = job.batches.load(step)
        features, logits = net.features_and_logits(normalize(batch.images))
        label = F.cross_entropy(upsample(logits, CROP_PX), batch.labels.long(), ignore_index=255)
        distill = kl(logits, batch.teacher_logits(CPU), 2.0)
        error = (projection(F.avg_pool2d(features, 2)) - batch.teacher_features(CPU)).square().mean()
        loss = 0.6 * label + 0.4 * 2.0**2 * distill + 0.5 * error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, curve = run(tmp_path, net=TinyNet(dropout=0.0), **given)

    torch.testing.assert_close(found.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-5)
    assert curve[-1]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert curve[-1]["distill_loss"] == pytest.approx(distill.item(), rel=1e-4)  # of the logits alone


def test_gradient_of_the_feature_loss_reaches_backbone_and_projection_alone():
    job = make_job(**with_features())
    batch = job.batches.load(0)
    features, logits = job.net.features_and_logits(batch.inputs(CPU))
    loss = job.distillation.feature_loss(features, batch)
    assert 0.5 < loss.item() < 50
    loss.backward()
    reached = {name.split(".")[0] for name, weight in job.net.named_parameters() if weight.grad is not None}
    assert reached == {"backbone", "feature_projection"}
    assert all(weight.grad.abs().sum() > 0 for name, weight in job.net.named_parameters() if name.endswith("0.weight"))
    teacher = job.batches.features.teacher
    assert all(weight.grad is None for weight in teacher.parameters())


def test_projection_learns_the_features(tmp_path):
    given = with_features(
        weight=1.0, steps=60, log_every_steps=20, flip_probability=0.0, jitter=0.0, schedule="constant"
    )
    _, curve = run(tmp_path, **given)
    # The rest of the loss is that of the features.
    errors = [row["loss"] - 0.6 * row["label_loss"] - 0.4 * 2.0**2 * row["distill_loss"] for row in curve]
    assert errors[-1] < 0.7 * errors[0]


def test_projection_depends_on_the_seed_alone():
    first, again, other = (add_feature_projection(TinyNet(), 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_adding_a_projection_changes_neither_statistics_nor_mode():
    net, untouched = TinyNet().train(), TinyNet().state_dict()
    add_feature_projection(net, 4, 0)
    assert net.training
    assert all(torch.equal(value, untouched[key]) for key, value in net.state_dict().items() if key in untouched)


def test_student_without_feature_weight_trains_as_before(tmp_path):
    """A cache with features changes no bit of a training that does not read them."""
    plain, plain_curve = run(tmp_path / "plain", **distilled())
    job = make_job(**distilled())
    job = job._replace(
        batches=CropLoader(
            job.batches.split,
            job.batches.batches,
            origins(),
            CROP_PX,
            job.batches.cached,
            features=FeaturesOfATeacher(TinyNet(seed=9), make_split()),
        )
    )
    optimizer = make_optimizer(job.net.train(), job.settings)
    for step in range(8):
        update(job, optimizer, step, job.batches.load(step))
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in job.net.state_dict().items())


@pytest.mark.parametrize("changed", [{}, {"ema_decay": 0.9}, {"optimizer": "adamw", "lr": 0.01}])
def test_training_with_features_resumes_with_the_same_bits(tmp_path, changed):
    expected = run(tmp_path / "straight", **with_features(**changed))
    assert "feature_projection.weight" in expected[0].state_dict()
    with pytest.raises(KilledError):
        run(tmp_path / "killed", hook=at(6, killed), **with_features(**changed))
    assert_same(run(tmp_path / "killed", net=TinyNet(seed=1), **with_features(**changed)), expected)
    without, _ = run(tmp_path / "without", **distilled(**changed))
    assert not torch.equal(without.classifier[1].weight, expected[0].classifier[1].weight)


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_features_of_flipped_and_mixed_crops_equal_those_made_by_hand(kind):
    rng, grid, batch_size, stride = np.random.default_rng(3), (4, 4), 4, 4
    exact = rng.normal(size=(FRAMES * VIEWS, *grid, 5)).astype(np.float32)
    values, scale = quantize(exact)
    restored = (scale[:, :, :1].astype(np.float32) + scale[:, :, 1:].astype(np.float32) * values).reshape(
        FRAMES, VIEWS, *grid, 5
    )
    shape = (FRAMES, VIEWS, *grid, 5)
    stored = StoredLogits(values.reshape(shape), scale.reshape(FRAMES, VIEWS, 4, 2, 5), grid, stride)
    batches = BatchSampler(0, "distill", FRAMES, VIEWS, batch_size, 0.5, 0.0)
    mixer = Mixer(kind, 1.0, 0, "distill", 2)  # of the logits' stride, which is finer
    batch = CropLoader(make_split(), batches, origins(), CROP_PX, mixer=mixer, features=stored).load(2)

    draws = batch.indices
    assert 0 < draws.flips.sum() < batch_size
    crops = restored[draws.frames, draws.views]
    crops = np.stack([crop[:, ::-1] if flip else crop for crop, flip in zip(crops, draws.flips, strict=True)])
    expected = crops.copy()
    for slot, row, column in np.ndindex(batch_size, *grid):
        if batch.mixed.pasted[slot, row * stride + stride // 2, column * stride + stride // 2]:
            expected[slot, row, column] = crops[(slot + 1) % batch_size, row, column]
    assert not np.array_equal(expected, crops)
    found = batch.teacher_features(CPU).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert batch.teacher_logits(CPU) is None
