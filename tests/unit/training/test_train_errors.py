"""A loss or weight that is not finite stops a training before it is saved; the last good checkpoint stays."""

from __future__ import annotations

import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import train
from support.tiny_training import assert_same, at, distilled, make_job, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """8 steps in one go."""
    return run(tmp_path_factory.mktemp("straight"))


def nan_at(step: int) -> dict:
    indices = make_job(**distilled()).batches.batches.indices(step)
    return distilled(nan_for={indices.seed})


def test_loss_that_is_not_finite_is_reported_with_its_step_and_frames(tmp_path):
    names = dict.fromkeys(make_job().batches.names(5))
    with pytest.raises(UserError) as error:
        run(tmp_path, schedule="constant", **nan_at(5))
    assert str(error.value) == (f"distill/tiny: loss is nan at step 6, lr 0.1, frames {', '.join(names)}; not updated")


def test_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    job, before = make_job(**nan_at(5)), {}

    def remember(step: int) -> None:
        before.update({name: value.detach().clone() for name, value in job.net.named_parameters()})

    job.batches.hook = remember
    with pytest.raises(UserError), Checkpointer(job.name, "key", tmp_path) as checkpointer:
        train(job, checkpointer)
    assert all(torch.equal(value, before[name]) for name, value in job.net.named_parameters())


def test_loss_that_is_not_finite_leaves_the_last_checkpoint(tmp_path):
    with pytest.raises(UserError):
        run(tmp_path, **nan_at(5))
    with Checkpointer("distill/tiny", "key", tmp_path) as checkpointer:
        state = checkpointer.load()
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for value in state["net"].values())


def test_training_continues_from_the_last_checkpoint_when_the_loss_is_finite_again(tmp_path):
    expected = run(tmp_path / "straight", **distilled())
    with pytest.raises(UserError):
        run(tmp_path / "spoilt", **nan_at(5))
    seen = []
    assert_same(run(tmp_path / "spoilt", hook=seen.append, **distilled()), expected)
    assert seen == [4, 5, 6, 7]


def test_infinite_loss_is_reported_too(tmp_path):
    job = make_job(schedule="constant")

    def spoil() -> None:
        job.net.classifier[1].bias.data[:] = torch.tensor([3e38, -3e38, 0])

    job.batches.hook = at(2, spoil)
    names = ", ".join(dict.fromkeys(job.batches.names(2)))
    with pytest.raises(UserError) as error, Checkpointer(job.name, "key", tmp_path) as checkpointer:
        train(job, checkpointer)
    assert str(error.value) == f"distill/tiny: loss is inf at step 3, lr 0.1, frames {names}; not updated"


def test_weights_that_are_not_finite_do_not_replace_the_last_checkpoint(straight, tmp_path):
    """A finite loss with an infinite gradient: only the next loss would show it, after the checkpoint was saved."""
    job = make_job(checkpoint_every_steps=1)
    weight = job.net.classifier[1].weight
    job.batches.hook = at(5, lambda: weight.register_hook(lambda gradient: gradient * torch.inf))
    message = r"distill/tiny: classifier\.1\.weight is not finite after step 6, lr 0\.\d+; not saved"
    with pytest.raises(UserError, match=message), Checkpointer(job.name, "key", tmp_path) as checkpointer:
        train(job, checkpointer)
    seen = []
    assert_same(run(tmp_path, hook=seen.append, checkpoint_every_steps=1), straight)
    assert seen == [5, 6, 7]
