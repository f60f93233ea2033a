"""The moving average against torch's own, in a training, and through stops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from segdistill.training.averaging import MovingAverage
from support.tiny_training import COMPUTE, KilledError, TinyNet, assert_same, at, distilled, killed, make_job, run

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 8


def moved(net: nn.Module, step: int) -> None:
    """Change all weights, and the running statistics and counts by a forward pass."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        net.train()(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_moving_average_is_torchs_averaged_model_with_its_buffers(decay):
    def lerp(averages, currents, count) -> None:
        # AveragedModel copies the network at its first update, so that the first step is its second one.
        weight = 1 - min(decay, count / (9 + count))
        for average, current in zip(averages, currents, strict=True):
            average.lerp_(current, weight) if average.is_floating_point() else average.copy_(current)

    net = COMPUTE.place(TinyNet())
    average = MovingAverage(net, decay)
    reference = AveragedModel(net, multi_avg_fn=lerp, use_buffers=True)
    reference.update_parameters(net)
    for step in range(STEPS):
        moved(net, step)
        average.update(step)
        reference.update_parameters(net)
    expected = reference.module.state_dict()
    found = average.net.state_dict()
    assert [name for name, value in found.items() if not torch.equal(value, expected[name])] == []
    assert found["backbone.1.num_batches_tracked"] == STEPS
    assert not torch.equal(found["backbone.1.running_mean"], net.state_dict()["backbone.1.running_mean"])


def test_first_steps_count_as_much_as_their_number_allows():
    """One weight by hand: d is 1/10, 2/11 and then the decay."""
    net = nn.Linear(1, 1, bias=False)
    average = MovingAverage(net, 0.15)
    expected = net.weight.item()
    for step, decay in enumerate((1 / 10, 0.15, 0.15)):
        with torch.no_grad():
            net.weight.fill_(step + 2.0)
        average.update(step)
        expected = decay * expected + (1 - decay) * (step + 2.0)
        assert average.net.weight.item() == pytest.approx(expected, rel=1e-6)


def test_training_ends_as_the_average_of_its_steps(tmp_path):
    """Against the same training without an average, whose network after each step is averaged here."""
    after_steps, expected = [], None
    for steps in range(STEPS + 1):
        net = TinyNet()
        if steps:  # a schedule that does not depend on the number of steps
            net, _ = run(tmp_path / f"{steps}", net=net, steps=steps, schedule="step")
        after_steps.append(net.state_dict())
    for step, state in enumerate(after_steps[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        before = expected or after_steps[0]
        expected = {name: decay * before[name] + (1 - decay) * value for name, value in state.items()}
    net, _ = run(tmp_path / "averaged", ema_decay=0.3, schedule="step")
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_average_is_scored_and_the_steps_do_not_see_it(tmp_path):
    scored: list[dict] = []

    def score(net: nn.Module, done: int) -> float:
        COMPUTE.place(net).eval()  # as the evaluator does
        scored.append({name: value.clone() for name, value in net.state_dict().items()})
        return done / 10

    _, plain = run(tmp_path / "plain", log_every_steps=1)
    given = {"ema_decay": 0.9, "evaluate_every_steps": 2, "log_every_steps": 1}
    net, curve = run(tmp_path / "averaged", holdout=score, **given)
    assert [row["loss"] for row in curve] == [row["loss"] for row in plain]
    assert [row["holdout_mean_iou"] for row in curve] == [None, 0.2, None, 0.4, None, 0.6, None, 0.8]
    last = net.state_dict()
    assert all(torch.equal(value, last[name]) for name, value in scored[-1].items())
    assert not torch.equal(scored[-2]["backbone.0.weight"], last["backbone.0.weight"])


CHANGES = {
    "average": {"ema_decay": 0.9},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "both, distilled": {"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.5, "warmup_steps": 5, **distilled()},
}


@pytest.mark.parametrize("changed", CHANGES.values(), ids=CHANGES)
def test_training_killed_at_any_step_ends_with_the_same_bits(tmp_path, changed):
    straight = run(tmp_path / "straight", **changed)
    for step in (0, 3, 4, 7):
        with pytest.raises(KilledError):
            run(tmp_path / f"{step}", hook=at(step, killed), checkpoint_every_steps=2, **changed)
        assert_same(run(tmp_path / f"{step}", net=TinyNet(seed=1 if step >= 2 else 0), **changed), straight)
    # A finished training is loaded as its average, without a further step.
    assert_same(run(tmp_path / "straight", net=TinyNet(seed=1), hook=lambda step: killed(), **changed), straight)


def test_average_changes_what_a_training_hands_on(tmp_path):
    plain, averaged = (run(tmp_path / str(decay), ema_decay=decay)[0].state_dict() for decay in (0.0, 0.9))
    assert not torch.equal(plain["backbone.0.weight"], averaged["backbone.0.weight"])
    assert plain["backbone.1.num_batches_tracked"] == averaged["backbone.1.num_batches_tracked"] == 8


def test_average_keeps_the_memory_layout_of_the_network():
    net = COMPUTE.place(make_job().net)
    average = MovingAverage(net, 0.9).net
    assert [p.stride() for p in average.parameters()] == [p.stride() for p in net.parameters()]
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())
