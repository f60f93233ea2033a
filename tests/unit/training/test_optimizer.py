"""Optimizers have the bits of torch's fused ones, through stops, layouts and missing gradients; no compiler loads."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from segdistill.core.errors import UserError
from segdistill.training.optimizers import SGD, AdamW, Optimizer, ParameterGroup, make_optimizer
from support.tiny_training import settings_of

pytestmark = pytest.mark.usefixtures("one_thread")
LRS = (0.1, 0.1, 0.03, 0.5, 0.0, 0.2, 0.01, 0.07)
BACKBONE_FACTOR = 0.1
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def small_net(device: str = "cpu", seed: int = 0) -> nn.Module:
    """Convolutions, also depthwise, batch norms and biases, laid out as in training."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6)),
        nn.Sequential(nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 3)),
    )
    return net.to(device, memory_format=torch.channels_last)


def backward(net: nn.Module, step: int) -> None:
    """Leave the gradients of step `step` in `net`."""
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(step)).to(net[0][0].weight.device)
    net(images).square().mean().backward()


def named(net: nn.Module, of_backbone: bool) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in net.named_parameters() if name.startswith("0.") == of_backbone}


def ours(net: nn.Module, kind: str = "sgd", momentum: float = 0.9, weight_decay: float = 0.01) -> Optimizer:
    groups = [
        ParameterGroup(named(net, True), BACKBONE_FACTOR, weight_decay),
        ParameterGroup(named(net, False), 1.0, weight_decay),
    ]
    return SGD(groups, momentum) if kind == "sgd" else AdamW(groups)


def torchs(groups: list[dict], kind: str = "sgd", momentum: float = 0.9, weight_decay: float = 0.01):
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, weight_decay=weight_decay, fused=True)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=weight_decay, fused=True)


def torchs_steps(net: nn.Module, kind: str = "sgd", momentum: float = 0.9, weight_decay: float = 0.01) -> nn.Module:
    """`net` after a step of torch's fused optimizer at each of LRS."""
    groups = [{"params": list(named(net, of_backbone).values())} for of_backbone in (True, False)]
    optimizer = torchs(groups, kind, momentum, weight_decay)
    for step, lr in enumerate(LRS):
        backward(net, step)
        for group, factor in zip(optimizer.param_groups, (BACKBONE_FACTOR, 1.0), strict=True):
            group["lr"] = lr * factor
        optimizer.step()
        optimizer.zero_grad()
    return net


def our_steps(net: nn.Module, optimizer: Optimizer, first: int = 0, end: int = len(LRS)) -> nn.Module:
    for step in range(first, end):
        backward(net, step)
        optimizer.step(LRS[step])
        optimizer.zero_grad()
    return net


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    """Both networks have equal weights and batch norm statistics, bit for bit."""
    expected = wanted.state_dict()
    assert [name for name, value in found.state_dict().items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("kind", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.0)])
def test_optimizer_has_the_bits_of_torchs_fused_one(device, kind, momentum, weight_decay):
    net = small_net(device)
    our_steps(net, ours(net, kind, momentum, weight_decay))
    assert_same(net, torchs_steps(small_net(device), kind, momentum, weight_decay))


def test_sgd_follows_the_formula():
    """One weight by hand: v <- m v + (g + d w), w <- w - lr v, with a gradient of 2 w."""
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = SGD([ParameterGroup({"w": weight}, 0.5, weight_decay=0.1)], momentum=0.9)
    w, v = 3.0, None
    for lr in (0.1, 0.2, 0.05):
        weight.square().sum().backward()
        optimizer.step(lr)
        optimizer.zero_grad()
        gradient = 2 * w + 0.1 * w
        v = gradient if v is None else 0.9 * v + gradient
        w -= 0.5 * lr * v
        assert weight.item() == pytest.approx(w, rel=1e-6)


def test_adamw_follows_the_formula():
    """One weight by hand: Adam's step on the plain gradient, of 2 w, and the decay of the weight apart from it."""
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = AdamW([ParameterGroup({"w": weight}, 0.5, weight_decay=0.1)])
    w, mean, square = 3.0, 0.0, 0.0
    for step, lr in enumerate((0.1, 0.2, 0.05), start=1):
        weight.square().sum().backward()
        optimizer.step(lr)
        optimizer.zero_grad()
        gradient = 2 * w
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        w -= 0.5 * lr * 0.1 * w
        w -= 0.5 * lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)) ** 0.5 + 1e-8)
        assert weight.item() == pytest.approx(w, rel=1e-6)


@pytest.mark.parametrize("decay_norm_and_bias", [True, False])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weight_decay_may_leave_out_norms_and_biases(kind, decay_norm_and_bias):
    """Against torch's optimizer over a group for each parameter, by the kind of its module."""
    net, reference = small_net(), small_net()
    settings = settings_of(optimizer=kind, weight_decay=0.5, decay_norm_and_bias=decay_norm_and_bias)
    optimizer = make_optimizer(net, settings)
    groups = []
    for module in reference.modules():
        for name, parameter in module.named_parameters(recurse=False):
            decays = decay_norm_and_bias or (isinstance(module, nn.Conv2d) and name == "weight")
            groups.append({"params": [parameter], "weight_decay": 0.5 if decays else 0.0})
    torch_optimizer = torchs(groups, kind)
    for step, lr in enumerate(LRS):
        for each in (net, reference):
            backward(each, step)
        optimizer.step(lr)
        optimizer.zero_grad()
        for group in torch_optimizer.param_groups:
            group["lr"] = lr
        torch_optimizer.step()
        torch_optimizer.zero_grad()
    assert_same(net, reference)


def test_backbone_has_its_own_factor_of_the_learning_rate():
    net = nn.ModuleDict({"backbone": nn.Conv2d(1, 2, 1), "head": nn.Conv2d(2, 1, 1)})
    groups = make_optimizer(net, settings_of(backbone_lr_factor=0.25, decay_norm_and_bias=False)).groups
    found = {name: (group.lr_factor, group.weight_decay) for group in groups for name in group.parameters}
    assert found == {
        "backbone.weight": (0.25, 0.01),
        "backbone.bias": (0.25, 0.0),
        "head.weight": (1.0, 0.01),
        "head.bias": (1.0, 0.0),
    }


def stored(state: dict) -> dict:
    """`state`, written to a file and read again."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


@pytest.mark.parametrize("stop", [0, 1, 4])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_loaded_from_a_state_continues_with_the_same_bits(device, kind, stop):
    stopped = small_net(device)
    optimizer = ours(stopped, kind)
    our_steps(stopped, optimizer, end=stop)
    state = stored({"net": stopped.state_dict(), "optimizer": optimizer.state_dict()})

    resumed = small_net(device, seed=1)
    resumed.load_state_dict(state["net"])
    optimizer = ours(resumed, kind)
    optimizer.load_state_dict(state["optimizer"], source="state.pt")
    assert_same(our_steps(resumed, optimizer, first=stop), torchs_steps(small_net(device), kind))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_memory_layout_of_a_stored_state_does_not_matter(kind):
    net = small_net()
    optimizer = ours(net, kind)
    our_steps(net, optimizer, end=4)
    state = optimizer.state_dict()
    turned = {name: {key: value.contiguous() for key, value in of.items()} for name, of in state.items()}
    assert any(turned[name][key].stride() != value.stride() for name, of in state.items() for key, value in of.items())
    optimizer.load_state_dict(turned, source="state.pt")
    assert_same(our_steps(net, optimizer, first=4), torchs_steps(small_net(), kind))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_loaded_state_is_a_copy(kind):
    net = small_net()
    optimizer = ours(net, kind)
    our_steps(net, optimizer, end=1)
    state, kept = stored(optimizer.state_dict()), stored(optimizer.state_dict())
    optimizer.load_state_dict(state, source="state.pt")
    our_steps(net, optimizer, first=1)
    assert all(torch.equal(value, kept[name][key]) for name, of in state.items() for key, value in of.items())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_state_is_keyed_by_parameter_names(kind):
    net = small_net()
    optimizer = ours(net, kind)
    assert optimizer.state_dict() == {}
    our_steps(net, optimizer, end=1)
    assert set(optimizer.state_dict()) == dict(net.named_parameters()).keys()


@pytest.mark.parametrize("foreign", [("head.weight", 2), ("0.0.bias", 7)])
def test_state_of_another_network_is_refused(foreign):
    name, size = foreign
    with pytest.raises(UserError, match=rf"scratch/x: holds optimizer state of '{name}'"):
        ours(small_net()).load_state_dict({name: {"momentum_buffer": torch.zeros(size)}}, source="scratch/x")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_parameter_moves_only_when_it_has_a_gradient(kind):
    """As torch does, where each parameter is its own group: its first step is its own first."""

    def drop_gradients(net: nn.Module, step: int) -> None:
        net[0][0].weight.grad = None
        if step < 2:
            net[1][0].weight.grad = None

    net, reference = small_net(), small_net()
    optimizer = ours(net, kind)
    torch_optimizer = torchs([{"params": [weight]} for weight in reference.parameters()], kind)
    factors = [BACKBONE_FACTOR if name.startswith("0.") else 1.0 for name, _ in reference.named_parameters()]
    for step, lr in enumerate(LRS):
        for each in (net, reference):
            backward(each, step)
            drop_gradients(each, step)
        optimizer.step(lr)
        optimizer.zero_grad()
        for group, factor in zip(torch_optimizer.param_groups, factors, strict=True):
            group["lr"] = lr * factor
        torch_optimizer.step()
        torch_optimizer.zero_grad()
    assert_same(net, reference)
    assert torch.equal(net[0][0].weight, small_net()[0][0].weight)
    assert "0.0.weight" not in optimizer.state_dict()


TRAINS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from support import tiny_training as loop
from segdistill.nets.device import Compute
from segdistill.nets.registry import build

loop.COMPUTE = Compute(torch.device("cpu"), torch.bfloat16, 1)
# Crops this large leave batch norm more than the four values of one pixel, with which a random network diverges.
loop.CROP_PX, loop.FRAME_PX = (64, 64), (72, 96)
torch.manual_seed(0)
root = Path(sys.argv[2])
student = build("deeplabv3_mobilenet_lite", loop.CLASSES)
loop.run(root / "distilled", steps=2, net=student, **loop.distilled(method="channel_kl"))
teacher = build("deeplabv3plus_resnet50", loop.CLASSES)
loop.run(root / "teacher", steps=1, net=teacher, label_loss="focal", optimizer="adamw", ema_decay=0.9)
print(" ".join(sys.modules))
"""


@pytest.mark.slow
def test_training_loads_neither_torchs_compiler_nor_torchvision(tmp_path):
    """Each takes about as long to import as torch itself, and a sweep has a process for every phase of every run."""
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", TRAINS, str(tests), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "segdistill.training.loop" in loaded
    assert loaded & {"torch._dynamo", "torch._inductor", "sympy", "torchvision", "torch.onnx"} == set()
