"""The optimizers, over torch's fused kernels.

Own code, because the first optimizer of torch.optim imports torch's compiler: 2.5 s of CPU time in each stage that
trains, more than the tiny profile's steps take.

The weights have to be in their final memory layout: the kernels take weight, gradient and state as flat memory, and
autograd gives a gradient the layout of its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.params.model import TrainingParams

# torch's defaults; no source of a recipe changes them.
ADAMW_BETAS, ADAMW_EPS = (0.9, 0.999), 1e-8


class ParameterGroup(NamedTuple):
    """Parameters by name, float32 and on one device, whose learning rate is `lr_factor` times the schedule's."""

    parameters: dict[str, nn.Parameter]
    lr_factor: float
    weight_decay: float


def make_optimizer(net: nn.Module, settings: TrainingParams) -> Optimizer:
    """Return the optimizer that params name; the backbone has its own factor of the learning rate.

    With `decay_norm_and_bias: false` parameters of one dimension (batch norm, biases) have no weight decay.
    """
    groups: dict[tuple[float, float], dict[str, nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        lr_factor = settings.backbone_lr_factor if name.startswith("backbone.") else 1.0
        decays = settings.decay_norm_and_bias or parameter.ndim > 1
        groups.setdefault((lr_factor, settings.weight_decay if decays else 0.0), {})[name] = parameter
    made = [ParameterGroup(parameters, *rates) for rates, parameters in groups.items()]
    return SGD(made, settings.momentum) if settings.optimizer == "sgd" else AdamW(made)


class Optimizer:
    """The groups of an optimizer and its state: tensors by parameter and, as in torch.optim, by name."""

    def __init__(self, groups: list[ParameterGroup]) -> None:
        self.groups = groups
        self.state: dict[str, dict[str, Tensor]] = {}

    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for group in self.groups:
            for parameter in group.parameters.values():
                parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the state of each parameter that has moved, by the parameter's name; its tensors are not copied."""
        return {name: dict(state) for name, state in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]], source: str) -> None:
        """Continue from what `state_dict` gave; `source` names it in messages.

        Raises:
            UserError: the state is that of other parameters.
        """
        parameters = {name: parameter for group in self.groups for name, parameter in group.parameters.items()}
        self.state = {}
        for name, tensors in state.items():
            shapes = [tensor.shape for tensor in tensors.values() if tensor.ndim]  # a count of steps has no dimension
            if name not in parameters or any(shape != parameters[name].shape for shape in shapes):
                raise UserError(
                    f"{source}: holds optimizer state of {name!r}, which this network does not have; remove it"
                )
            weight = parameters[name]
            # In the memory layout of the parameter: a loaded state may have another.
            self.state[name] = {
                key: torch.empty_like(
                    weight if tensor.ndim else tensor, device=weight.device, requires_grad=False
                ).copy_(tensor)
                for key, tensor in tensors.items()
            }


class SGD(Optimizer):
    """SGD with momentum over the kernel that `torch.optim.SGD(fused=True)` calls, with the same bits.

    v <- momentum * v + (gradient + weight_decay * w);  w <- w - lr * v. The first v of a parameter is its decayed
    gradient; without momentum there is no v. A parameter without a gradient stays as it is.
    """

    def __init__(self, groups: list[ParameterGroup], momentum: float) -> None:
        super().__init__(groups)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            gradients = {name: weight.grad for name, weight in group.parameters.items() if weight.grad is not None}
            first = {name: g for name, g in gradients.items() if self.momentum and name not in self.state}
            for name, gradient in first.items():
                self.state[name] = {"momentum_buffer": torch.empty_like(gradient)}
            later = {name: gradient for name, gradient in gradients.items() if name not in first}
            for moving, is_first_step in ((first, True), (later, False)):
                if moving:
                    torch._fused_sgd_(
                        [group.parameters[name] for name in moving],
                        list(moving.values()),
                        [self.state[name]["momentum_buffer"] for name in moving] if self.momentum else [],
                        weight_decay=group.weight_decay,
                        momentum=self.momentum,
                        lr=lr * group.lr_factor,
                        dampening=0.0,
                        nesterov=False,
                        maximize=False,
                        is_first_step=is_first_step,
                    )


class AdamW(Optimizer):
    """AdamW over the kernel that `torch.optim.AdamW(fused=True)` calls, with the same bits.

    Loshchilov and Hutter, arXiv:1711.05101: w <- w - lr * weight_decay * w, apart from Adam's own step. A parameter
    without a gradient stays as it is.
    """

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient."""
        for group in self.groups:
            gradients = {name: weight.grad for name, weight in group.parameters.items() if weight.grad is not None}
            if not gradients:
                continue
            for name, gradient in gradients.items():
                if name not in self.state:
                    self.state[name] = {
                        "exp_avg": torch.zeros_like(gradient),
                        "exp_avg_sq": torch.zeros_like(gradient),
                        "step": torch.zeros((), device=gradient.device),
                    }
            states = [self.state[name] for name in gradients]
            steps = [state["step"] for state in states]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [group.parameters[name] for name in gradients],
                list(gradients.values()),
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                lr=lr * group.lr_factor,
                beta1=ADAMW_BETAS[0],
                beta2=ADAMW_BETAS[1],
                weight_decay=group.weight_decay,
                eps=ADAMW_EPS,
                amsgrad=False,
                maximize=False,
            )
