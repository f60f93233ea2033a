"""SGD with momentum, over the kernel that `torch.optim.SGD(fused=True)` calls, with the same bits.

Making an optimizer of torch.optim imports torch's compiler, which takes longer than the first training steps do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segdistill.base.errors import InputError


class ParameterGroup(NamedTuple):
    """Parameters by name, float32 and on one device, that step at `lr_factor` times the learning rate."""

    parameters: dict[str, nn.Parameter]
    lr_factor: float


class SGD:
    """v <- momentum * v + (gradient + weight_decay * w);  w <- w - lr * v.

    The first v of a parameter is its gradient with the decay in it; without momentum there is none. A parameter without
    a gradient stays as it is. The weights are those of a network in its final memory layout: the kernel takes weight,
    gradient and v as flat memory, and autograd gives a gradient the layout of its weight.
    """

    def __init__(self, groups: list[ParameterGroup], momentum: float, weight_decay: float) -> None:
        self.groups, self.momentum, self.weight_decay = groups, momentum, weight_decay
        self._velocities: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            moving = {name: weight for name, weight in group.parameters.items() if weight.grad is not None}
            first = {name: weight for name, weight in moving.items() if self.momentum and name not in self._velocities}
            self._velocities |= {name: torch.empty_like(weight.grad) for name, weight in first.items()}
            later = {name: weight for name, weight in moving.items() if name not in first}
            self._move(first, lr * group.lr_factor, is_first_step=True)
            self._move(later, lr * group.lr_factor, is_first_step=False)

    def _move(self, weights: dict[str, nn.Parameter], lr: float, is_first_step: bool) -> None:
        if not weights:
            return
        torch._fused_sgd_(
            list(weights.values()),
            [weight.grad for weight in weights.values()],
            [self._velocities[name] for name in weights] if self.momentum else [],
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=is_first_step,
        )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for group in self.groups:
            for parameter in group.parameters.values():
                parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """v of each parameter that has moved, by the parameter's name; shared with the optimizer, not copied."""
        return dict(self._velocities)

    def load_state_dict(self, state: Mapping[str, Tensor], source: str) -> None:
        """Go on from what `state_dict` gave; `source` says in messages where it comes from.

        Raises:
            InputError: the state is that of other parameters.
        """
        parameters = {name: parameter for group in self.groups for name, parameter in group.parameters.items()}
        for name, velocity in state.items():
            if name not in parameters or velocity.shape != parameters[name].shape:
                raise InputError(
                    f"{source}: holds optimizer state of {name!r}, which this network does not have; remove it"
                )
        # In the layout of the parameter, whatever the layout of what was stored.
        self._velocities = {
            name: torch.empty_like(parameters[name], requires_grad=False).copy_(velocity)
            for name, velocity in state.items()
        }
