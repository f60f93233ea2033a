"""Learning rates against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch

from segdistill.training.loop import lr_at
from support.tiny_training import settings_of


def ours(schedule, steps=20, **changed):
    settings = settings_of(schedule=schedule, steps=steps, **({"decay_every_steps": 6, "gamma": 0.3} | changed))
    return [lr_at(step, settings) for step in range(steps)]


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


def test_every_schedule_starts_at_lr():
    assert [ours(schedule)[0] for schedule in ("constant", "step", "poly")] == [0.1] * 3


@pytest.mark.parametrize("schedule", ["constant", "step", "poly"])
@pytest.mark.parametrize("warmup_steps", [1, 4, 20])
def test_warmup_equals_torchs_linear_lr_before_the_schedule(schedule, warmup_steps):
    def make(optimizer):
        torch_schedules = torch.optim.lr_scheduler
        after = {
            "constant": lambda: torch_schedules.ConstantLR(optimizer, factor=1.0),
            "step": lambda: torch_schedules.StepLR(optimizer, 6, 0.3),
            "poly": lambda: torch_schedules.PolynomialLR(optimizer, 20, 0.9),
        }[schedule]()
        warmup = torch_schedules.LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)
        return torch_schedules.ChainedScheduler([warmup, after])

    assert ours(schedule, warmup_steps=warmup_steps) == pytest.approx(torchs(make), rel=1e-9)
