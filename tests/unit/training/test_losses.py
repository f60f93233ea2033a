"""Losses are summed in the order of the steps, whenever they are read; one that is not finite names its step."""

from __future__ import annotations

import pytest
import torch

from segdistill.training.losses import MAX_UNREAD, LossSums


class RefusedError(Exception):
    """What a test refuses a loss with."""


def refuse(step: int, loss: float):
    raise RefusedError(step, loss)


def zeros() -> torch.Tensor:
    return torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize("read_every", [1, 3, 7])
def test_reading_more_often_changes_no_bit(read_every):
    losses = torch.rand(20, 3)
    sums, expected = LossSums(zeros(), refuse), zeros()
    for step, row in enumerate(losses):
        sums.add(step, row)
        expected += row.double()
        if step % read_every == 0:
            sums.read()
    assert torch.equal(sums.read(), expected)


def test_sums_begin_where_a_checkpoint_left_them():
    sums = LossSums(torch.full((3,), 2.0, dtype=torch.float64), refuse)
    sums.add(4, torch.ones(3))
    assert sums.read().tolist() == [3.0, 3.0, 3.0]
    sums.reset()
    assert sums.read().tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_the_first_loss_that_is_not_finite_is_refused(bad):
    sums = LossSums(zeros(), refuse)
    for step, loss in enumerate([1.0, 2.0, bad, torch.nan]):
        sums.add(step, torch.tensor([loss, 1.0, 1.0]))
    with pytest.raises(RefusedError) as error:
        sums.read()
    assert error.value.args[0] == 2


def test_a_loss_that_is_not_finite_is_found_after_many_steps_at_the_latest():
    sums = LossSums(zeros(), refuse)
    sums.add(0, torch.full((3,), torch.nan))
    with pytest.raises(RefusedError):
        for step in range(1, MAX_UNREAD):
            sums.add(step, torch.ones(3))
