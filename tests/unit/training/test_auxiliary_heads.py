"""Auxiliary heads in the training loop: they learn from the labels, and nothing else sees them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdistill.data.transforms import normalize
from segdistill.formats.classes import IGNORE
from segdistill.nets.realtime import AuxiliaryNet
from segdistill.nets.resize import upsample
from segdistill.student.distillation import kl
from support.tiny_training import CLASSES, CROP_PX, KilledError, assert_same, at, distilled, killed, make_job, run

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = {"schedule": "constant", "steps": 2, "jitter": 0.0, "backbone_lr_factor": 1.0, "log_every_steps": 1}


class TinyAuxiliaryNet(AuxiliaryNet):
    """Logits at stride 2, and a head that learns them at a weight of 0.7."""

    auxiliary_heads = ("extra",)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier, self.extra = nn.Conv2d(6, CLASSES, 1), nn.Conv2d(6, CLASSES, 1)

    def forward(self, images_BCHW):
        features = self.backbone(images_BCHW)
        logits = self.classifier(features)
        return (logits, self.extra(features)) if self.training else logits

    def auxiliary_loss(self, auxiliary, pixels_BCHW, labels_BHW, label_loss):
        (extra,) = auxiliary
        assert pixels_BCHW.shape[-2:] == labels_BHW.shape[-2:]
        return 0.7 * label_loss(upsample(extra, labels_BHW.shape[-2:]), labels_BHW)


def cross_entropy(logits, labels):
    return F.cross_entropy(upsample(logits, CROP_PX), labels, ignore_index=IGNORE)


@pytest.mark.parametrize("distils", [False, True])
def test_losses_of_heads_join_the_label_loss(tmp_path, distils):
    given = PLAIN | (distilled(alpha=0.4, temperature=2.0, kl_resolution="stride") if distils else {})
    net, job = TinyAuxiliaryNet(), make_job(**given)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(2):
        batch = job.batches.load(step)
        labels = batch.labels.long()
        logits, extra = net(normalize(batch.images))
        label = cross_entropy(logits, labels)
        loss = label + 0.7 * cross_entropy(extra, labels)
        if distils:
            loss = 0.6 * loss + 0.4 * 2.0**2 * kl(logits, batch.teacher_logits("cpu"), 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, curve = run(tmp_path, net=TinyAuxiliaryNet(), **given)

    torch.testing.assert_close(found.state_dict(), net.state_dict(), rtol=1e-5, atol=1e-6)
    assert curve[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert curve[-1]["label_loss"] == pytest.approx(label.item(), rel=1e-5)  # of the logits that ship


def test_training_with_heads_resumes_with_the_same_bits(tmp_path):
    straight = run(tmp_path / "straight", net=TinyAuxiliaryNet(), **distilled())
    with pytest.raises(KilledError):
        run(tmp_path / "killed", net=TinyAuxiliaryNet(), hook=at(6, killed), **distilled())
    assert_same(run(tmp_path / "killed", net=TinyAuxiliaryNet(seed=1), **distilled()), straight)


def test_holdout_sees_the_logits_alone(tmp_path):
    shapes = []

    def holdout(net, done):
        shapes.append(net.eval()(torch.zeros(1, 3, 16, 16)).shape)
        return 0.0

    run(tmp_path, net=TinyAuxiliaryNet(), holdout=holdout, evaluate_every_steps=4)
    assert shapes == [(1, CLASSES, 8, 8)] * 2
