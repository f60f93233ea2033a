"""Learning rates against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch

from segdistill.training.loop import lr_at


def ours(schedule, steps=20, **changed):
    settings = {"lr": 0.1, "decay_every_steps": 6, "gamma": 0.3, "poly_power": 0.9} | changed
    return [lr_at(step, schedule=schedule, steps=steps, **settings) for step in range(steps)]


def torchs(make, steps=20):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_is_constant():
    assert ours("constant") == [0.1] * 20


@pytest.mark.parametrize(("every", "gamma"), [(1, 0.5), (6, 0.3), (7, 0.1), (100, 0.1), (3, 1.0)])
def test_step_equals_torchs_step_lr(every, gamma):
    expected = torchs(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, every, gamma))
    assert ours("step", decay_every_steps=every, gamma=gamma) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0])
def test_poly_equals_torchs_polynomial_lr(power):
    expected = torchs(lambda optimizer: torch.optim.lr_scheduler.PolynomialLR(optimizer, 20, power))
    assert ours("poly", poly_power=power) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["constant", "step", "poly"])
def test_every_schedule_starts_at_lr(schedule):
    assert ours(schedule)[0] == 0.1


def test_poly_of_the_last_step_is_small_but_not_zero():
    assert ours("poly", poly_power=1.0)[-1] == pytest.approx(0.1 / 20)


def test_step_decays_exactly_at_its_step():
    rates = ours("step")
    assert (rates[5], rates[6]) == pytest.approx((0.1, 0.03))


def test_an_unknown_schedule_is_our_fault():
    with pytest.raises(AssertionError, match="cosine"):
        ours("cosine")
