"""Numbers that go wrong stop a training before they are kept; the last good state goes on."""

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
    plan = make_job(**distilled()).batches.batches.plan(step)
    return distilled(nan_for={plan.seed})


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    names = dict.fromkeys(make_job().batches.names(5))
    with pytest.raises(UserError) as error:
        run(tmp_path, schedule="constant", **nan_at(5))
    assert str(error.value) == (f"distill/tiny: loss is nan at step 6, lr 0.1, frames {', '.join(names)}; not updated")


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    job, before = make_job(**nan_at(5)), {}

    def remember(step: int) -> None:
        before.update({name: value.detach().clone() for name, value in job.net.named_parameters()})

    job.batches.hook = remember
    with pytest.raises(UserError), Checkpointer(job.name, "key", tmp_path) as scratch:
        train(job, scratch)
    assert all(torch.equal(value, before[name]) for name, value in job.net.named_parameters())


def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path):
    with pytest.raises(UserError):
        run(tmp_path, **nan_at(5))
    with Checkpointer("distill/tiny", "key", tmp_path) as scratch:
        state = scratch.load()
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for value in state["net"].values())


def test_once_the_loss_is_finite_again_training_goes_on_from_the_last_state(tmp_path):
    expected = run(tmp_path / "straight", **distilled())
    with pytest.raises(UserError):
        run(tmp_path / "spoilt", **nan_at(5))
    seen = []
    assert_same(run(tmp_path / "spoilt", hook=seen.append, **distilled()), expected)
    assert seen == [4, 5, 6, 7]


def test_an_infinite_loss_is_told_too(tmp_path):
    job = make_job(schedule="constant")

    def spoil() -> None:
        job.net.classifier[1].bias.data[:] = torch.tensor([3e38, -3e38, 0])

    job.batches.hook = at(2, spoil)
    names = ", ".join(dict.fromkeys(job.batches.names(2)))
    with pytest.raises(UserError) as error, Checkpointer(job.name, "key", tmp_path) as scratch:
        train(job, scratch)
    assert str(error.value) == f"distill/tiny: loss is inf at step 3, lr 0.1, frames {names}; not updated"


def test_weights_that_are_not_finite_do_not_replace_the_last_state(straight, tmp_path):
    """A finite loss with an infinite gradient: the next loss would tell, after the state was saved."""
    job = make_job(checkpoint_every_steps=1)
    weight = job.net.classifier[1].weight
    job.batches.hook = at(5, lambda: weight.register_hook(lambda gradient: gradient * torch.inf))
    told = r"distill/tiny: classifier\.1\.weight is not finite after step 6, lr 0\.\d+; not saved"
    with pytest.raises(UserError, match=told), Checkpointer(job.name, "key", tmp_path) as scratch:
        train(job, scratch)
    seen = []
    assert_same(run(tmp_path, hook=seen.append, checkpoint_every_steps=1), straight)
    assert seen == [5, 6, 7]


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\3\4" + bytes(40)])
def test_a_damaged_state_counts_as_none(straight, tmp_path, content, capsys):
    run(tmp_path)
    (tmp_path / "distill" / "tiny" / "key" / "state.pt").write_bytes(content)
    seen = []
    assert_same(run(tmp_path, hook=seen.append), straight)
    assert seen[0] == 0
    assert "state.pt: unreadable" in capsys.readouterr().err
