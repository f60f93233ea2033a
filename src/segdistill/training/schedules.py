"""Learning rates as functions of the step."""

from __future__ import annotations


def lr_at(
    step: int, *, schedule: str, lr: float, steps: int, decay_every_steps: int, gamma: float, poly_power: float
) -> float:
    """The learning rate of optimizer step `step` (from 0) out of `steps`.

    constant: lr. step: lr * gamma^(step // decay_every_steps), as torch's StepLR.
    poly: lr * (1 - step / steps)^poly_power (Chen et al., DeepLab, arXiv:1606.00915).
    """
    if schedule == "constant":
        return lr
    if schedule == "step":
        return lr * gamma ** (step // decay_every_steps)
    assert schedule == "poly", schedule
    return lr * (1 - step / steps) ** poly_power
