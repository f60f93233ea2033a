"""The one loop: a training that was stopped, killed or resumed ends with the bits of one that was not."""

from __future__ import annotations

import csv
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdistill.compute import Compute
from segdistill.crops import CropBatches
from segdistill.dataset import Split
from segdistill.errors import InputError
from segdistill.losses import IGNORE
from segdistill.nets.resize import upsample
from segdistill.params import TrainingParams
from segdistill.rng import Batches, view_origins
from segdistill.scratch import Scratch, TrainingStoppedError
from segdistill.stored_logits import StoredCrops
from segdistill.train_loop import CURVE_COLUMNS, Distillation, Job, train
from segdistill.transforms import cut, normalised

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, FRAME_PX, CROP_PX, VIEWS, CLASSES = 5, (24, 32), (16, 16), 3, 3
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


class TinyNet(nn.Module):
    """Logits at stride 2, with all that makes resuming hard: batch norm and dropout."""

    def __init__(self, seed: int = 0, dropout: float = 0.3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(6, CLASSES, 1))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images_BCHW))


def make_split(shuffled_labels: bool = False) -> Split:
    """Frames whose label is how bright the pixel is: learnable by a 1x1 convolution."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, CLASSES, (FRAMES, FRAME_PX[0] // 4, FRAME_PX[1] // 4)).repeat(4, 1).repeat(4, 2)
    images = (levels[..., None] * 100 + rng.integers(0, 50, (*levels.shape, 3))).astype(np.uint8)
    labels = levels.astype(np.uint8)
    labels[:, 0] = IGNORE
    if shuffled_labels:
        labels = (labels + 1) % CLASSES
    return Split(images, labels, tuple(f"street{i}" for i in range(FRAMES)))


def settings_of(**changed) -> TrainingParams:
    given = {
        "output_stride": 16,
        "init": "random",
        "steps": 8,
        "batch_size": 4,
        "schedule": "poly",
        "decay_every_steps": 3,
        "gamma": 0.5,
        "poly_power": 0.9,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "backbone_lr_factor": 0.5,
        "label_loss": "cross_entropy",
        "focal_gamma": 2.0,
        "flip_probability": 0.5,
        "jitter": 0.3,
        "log_every_steps": 3,
        "evaluate_every_steps": 0,
        "checkpoint_every_steps": 4,
    }
    return TrainingParams(**(given | changed))


class FailingBatches(CropBatches):
    """Calls `hook(step)` before handing on the batch of that step."""

    hook = staticmethod(lambda step: None)

    def steps(self, first, end):
        for step, batch in super().steps(first, end):
            self.hook(step)
            yield step, batch


class LogitsOfATeacher:
    """The logits of a teacher on each planned crop, NaN for the plans with a seed in `nan_for`."""

    def __init__(self, teacher: nn.Module, split: Split, nan_for: set[int] = frozenset()) -> None:
        self.teacher, self.split, self.nan_for = teacher.eval(), split, nan_for

    @torch.no_grad()
    def cut(self, plan, origins):
        images = np.empty((len(plan.frames), *CROP_PX, 3), np.uint8)
        cut(self.split.images, plan.frames, origins, plan.flips, CROP_PX, images)
        logits = self.teacher(normalised(torch.from_numpy(images))).permute(0, 2, 3, 1).numpy()
        return StoredCrops(torch.from_numpy(logits * np.nan if plan.seed in self.nan_for else logits))

    def will_read(self, plan, origins):
        return 0


def origins() -> np.ndarray:
    return view_origins(0, FRAMES, VIEWS, FRAME_PX, CROP_PX, 4)


def make_job(net=None, hook=None, distillation=None, cached=None, split=None, lr=0.1, holdout=None, **changed) -> Job:
    settings = settings_of(**changed)
    batches = Batches(0, "distill", FRAMES, VIEWS, settings.batch_size, settings.flip_probability, settings.jitter)
    crops = FailingBatches(split or make_split(), batches, origins(), CROP_PX, cached)
    if hook is not None:
        crops.hook = hook
    return Job("distill/tiny", net or TinyNet(), crops, settings, lr, COMPUTE, distillation, holdout)


def run(root, key="key", **given) -> tuple[nn.Module, list[dict]]:
    """Train a job in the scratch folder `root` and return its net and curve."""
    job = make_job(**given)
    with Scratch(job.name, key, root) as scratch:
        return job.net, train(job, scratch)


def assert_same(found, wanted) -> None:
    """Both are (net, curve), equal bit for bit."""
    expected = wanted[0].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found[0].state_dict().items())
    assert found[1] == wanted[1]


def at(wanted_step: int, action):
    def hook(step: int) -> None:
        if step == wanted_step:
            action()

    return hook


class KilledError(Exception):
    """Stands for a kill: nothing more is saved."""


def killed() -> None:
    raise KilledError


def distilled(alpha=0.4, method="kl", temperature=2.0, kl_at="stride", live_teacher=None, nan_for=frozenset()) -> dict:
    """Arguments of a job that learns from a stored or a live teacher."""
    cached = None if live_teacher else LogitsOfATeacher(TinyNet(seed=9), make_split(), nan_for)
    return {"distillation": Distillation(alpha, method, temperature, kl_at, live_teacher), "cached": cached}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """8 steps in one go."""
    return run(tmp_path_factory.mktemp("straight"))


def test_two_trainings_are_equal_bit_for_bit(straight, tmp_path):
    assert_same(run(tmp_path), straight)


@pytest.mark.parametrize("step", range(8))
def test_killed_at_any_step_it_ends_with_the_same_bits(straight, tmp_path, step):
    with pytest.raises(KilledError):
        run(tmp_path, hook=at(step, killed))
    assert_same(run(tmp_path, net=TinyNet(seed=1 if step >= 4 else 0)), straight)


def test_killed_again_and_again_it_ends_with_the_same_bits(straight, tmp_path):
    for step in range(1, 8):
        with pytest.raises(KilledError):
            run(tmp_path, hook=at(step, killed), checkpoint_every_steps=1)
    assert_same(run(tmp_path, checkpoint_every_steps=1), straight)


def test_a_resumed_training_does_not_repeat_what_was_done(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, hook=at(6, killed))
    seen = []
    run(tmp_path, hook=seen.append)
    assert seen == [4, 5, 6, 7]


def test_a_distilled_training_resumes_with_the_same_bits(tmp_path):
    expected = run(tmp_path / "straight", **distilled())
    with pytest.raises(KilledError):
        run(tmp_path / "killed", hook=at(6, killed), **distilled())
    assert_same(run(tmp_path / "killed", **distilled()), expected)


def test_a_finished_training_is_not_done_again(straight, tmp_path):
    run(tmp_path)
    assert_same(run(tmp_path, net=TinyNet(seed=1), hook=lambda step: killed()), straight)


def test_another_key_never_meets_an_old_state(straight, tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, key="old", hook=at(6, killed), lr=0.5)
    assert_same(run(tmp_path, key="new"), straight)


def test_an_outdated_state_is_removed(tmp_path):
    run(tmp_path, key="old")
    run(tmp_path, key="new")
    assert not (tmp_path / "distill" / "tiny" / "old").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_after_the_running_step(straight, tmp_path, signal_number):
    with pytest.raises(TrainingStoppedError, match=r"distill/tiny: stopped after step 3 of 8; dvc repro goes on"):
        run(tmp_path, hook=at(2, lambda: os.kill(os.getpid(), signal_number)))
    seen = []
    assert_same(run(tmp_path, hook=seen.append), straight)
    assert seen == [3, 4, 5, 6, 7]


def test_signal_handlers_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def nan_at(step: int) -> dict:
    plan = make_job(**distilled()).batches.batches.plan(step)
    return distilled(nan_for={plan.seed})


def test_a_loss_that_is_not_finite_is_told(tmp_path):
    names = dict.fromkeys(make_job().batches.names(5))
    with pytest.raises(InputError) as error:
        run(tmp_path, schedule="constant", **nan_at(5))
    assert str(error.value) == (f"distill/tiny: loss is nan at step 6, lr 0.1, frames {', '.join(names)}; not updated")


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    job, before = make_job(**nan_at(5)), {}

    def remember(step: int) -> None:
        before.update({name: value.detach().clone() for name, value in job.net.named_parameters()})

    job.batches.hook = remember
    with pytest.raises(InputError), Scratch(job.name, "key", tmp_path) as scratch:
        train(job, scratch)
    assert all(torch.equal(value, before[name]) for name, value in job.net.named_parameters())


def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path):
    with pytest.raises(InputError):
        run(tmp_path, **nan_at(5))
    with Scratch("distill/tiny", "key", tmp_path) as scratch:
        state = scratch.load()
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for value in state["net"].values())


def test_once_the_loss_is_finite_again_training_goes_on_from_the_last_state(tmp_path):
    expected = run(tmp_path / "straight", **distilled())
    with pytest.raises(InputError):
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
    with pytest.raises(InputError) as error, Scratch(job.name, "key", tmp_path) as scratch:
        train(job, scratch)
    assert str(error.value) == f"distill/tiny: loss is inf at step 3, lr 0.1, frames {names}; not updated"


def test_weights_that_are_not_finite_do_not_replace_the_last_state(straight, tmp_path):
    """A finite loss with an infinite gradient: the next loss would tell, after the state was saved."""
    job = make_job(checkpoint_every_steps=1)
    weight = job.net.classifier[1].weight
    job.batches.hook = at(5, lambda: weight.register_hook(lambda gradient: gradient * torch.inf))
    told = r"distill/tiny: classifier\.1\.weight is not finite after step 6, lr 0\.\d+; not saved"
    with pytest.raises(InputError, match=told), Scratch(job.name, "key", tmp_path) as scratch:
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


def test_the_loop_is_plain_sgd(tmp_path):
    """Against the loop that anybody would write with torch.optim.SGD."""
    given = {"schedule": "constant", "steps": 3, "jitter": 0.0, "backbone_lr_factor": 1.0}
    net, job = TinyNet(dropout=0.0), make_job(**given)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(3):
        batch = job.batches.load(step)
        pixels = upsample(net(normalised(batch.images)), CROP_PX)
        loss = F.cross_entropy(pixels, batch.labels.long(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, curve = run(tmp_path, net=TinyNet(dropout=0.0), **given | {"log_every_steps": 1})
    torch.testing.assert_close(found.state_dict(), net.state_dict(), rtol=1e-5, atol=1e-6)
    assert curve[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_backbone_learns_at_its_own_rate(tmp_path):
    moved = []
    for factor in (1.0, 0.25):
        net, _ = run(tmp_path / str(factor), steps=1, backbone_lr_factor=factor)
        start = TinyNet()
        moved.append(
            [
                (net.backbone[0].weight - start.backbone[0].weight),
                (net.classifier[1].weight - start.classifier[1].weight),
            ]
        )
    torch.testing.assert_close(moved[1][0], 0.25 * moved[0][0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moved[1][1], moved[0][1])


def test_draws_of_others_do_not_matter(straight, tmp_path):
    assert_same(run(tmp_path, hook=lambda step: torch.manual_seed(0)), straight)


def test_a_net_given_in_eval_mode_is_trained_in_train_mode(straight, tmp_path):
    assert_same(run(tmp_path, net=TinyNet().eval()), straight)


@pytest.mark.parametrize(("kl_at", "size"), [("stride", (8, 8)), ("full", CROP_PX)])
def test_distributions_are_compared_where_params_say(tmp_path, kl_at, size):
    job = make_job(jitter=0.0, **distilled())
    batch = job.batches.load(0)
    with torch.no_grad():
        student = TinyNet(dropout=0.0)(normalised(batch.images))
    teacher = batch.teacher_logits(COMPUTE.device)
    student, teacher = (upsample(x.double(), size).log_softmax(1) for x in (student, teacher))
    expected = (teacher.exp() * (teacher - student)).sum(1).mean().item()
    given = distilled(temperature=1.0, kl_at=kl_at)
    _, curve = run(tmp_path, net=TinyNet(dropout=0.0), jitter=0.0, steps=1, **given)
    assert curve[0]["distill_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kl_at", ["stride", "full"])
@pytest.mark.parametrize("method", ["kl", "channel_kl", "sigmoid_kl"])
def test_alpha_mixes_as_params_say(tmp_path, method, kl_at):
    _, curve = run(tmp_path, **distilled(alpha=0.4, method=method, temperature=2.0, kl_at=kl_at))
    for row in curve:
        assert row["distill_loss"] > 0
        assert row["loss"] == pytest.approx(0.6 * row["label_loss"] + 0.4 * 4 * row["distill_loss"], rel=1e-5)


def test_with_alpha_0_the_teacher_does_not_matter(straight, tmp_path):
    net, _ = run(tmp_path, **distilled(alpha=0.0))
    torch.testing.assert_close(net.state_dict(), straight[0].state_dict())


@pytest.mark.parametrize("label_loss", ["cross_entropy", "focal"])
def test_with_alpha_1_the_labels_do_not_matter(tmp_path, label_loss):
    nets = []
    for shuffled in (False, True):
        split = make_split(shuffled)
        nets.append(run(tmp_path / str(shuffled), split=split, label_loss=label_loss, **distilled(alpha=1.0))[0])
    torch.testing.assert_close(nets[0].state_dict(), nets[1].state_dict())


def test_in_between_labels_and_teacher_both_matter(straight, tmp_path):
    found = run(tmp_path / "a", **distilled(alpha=0.5))[0].classifier[1].weight
    other = run(tmp_path / "b", split=make_split(True), **distilled(alpha=0.5))[0].classifier[1].weight
    assert not torch.allclose(found, straight[0].classifier[1].weight)
    assert not torch.allclose(found, other)


def test_a_live_teacher_teaches_what_its_stored_logits_do(tmp_path):
    stored = run(tmp_path / "stored", jitter=0.0, **distilled())
    live = run(tmp_path / "live", jitter=0.0, **distilled(live_teacher=TinyNet(seed=9).eval()))
    torch.testing.assert_close(live[0].state_dict(), stored[0].state_dict(), rtol=1e-5, atol=1e-6)


def test_a_live_teacher_does_not_learn(tmp_path):
    teacher = TinyNet(seed=9).eval()
    run(tmp_path, **distilled(live_teacher=teacher))
    assert all(torch.equal(value, TinyNet(seed=9).state_dict()[key]) for key, value in teacher.state_dict().items())


def test_a_control_has_no_distillation_loss(straight):
    assert all(row["distill_loss"] == 0 and row["loss"] == row["label_loss"] for row in straight[1])


@pytest.mark.parametrize("label_loss", ["cross_entropy", "focal"])
def test_the_loss_goes_down_on_what_can_be_learnt(tmp_path, label_loss):
    _, curve = run(tmp_path, steps=60, log_every_steps=10, schedule="constant", jitter=0.0, label_loss=label_loss)
    assert curve[-1]["loss"] < 0.4 * curve[0]["loss"]


def test_a_student_comes_closer_to_its_teacher(tmp_path):
    _, curve = run(tmp_path, steps=60, log_every_steps=10, jitter=0.0, net=TinyNet(dropout=0.0), **distilled(alpha=1.0))
    assert curve[-1]["distill_loss"] < 0.4 * curve[0]["distill_loss"]


def test_rows_of_the_curve_are_means_over_their_interval(straight, tmp_path):
    _, each = run(tmp_path, log_every_steps=1)
    losses = [row["loss"] for row in each]
    assert [row["step"] for row in straight[1]] == [3, 6, 8]
    expected = [np.mean(losses[:3]), np.mean(losses[3:6]), np.mean(losses[6:])]
    assert [row["loss"] for row in straight[1]] == pytest.approx(expected, rel=1e-12)


def test_rows_of_the_curve_tell_the_rate_of_their_last_step(straight):
    expected = [0.1 * (1 - step / 8) ** 0.9 for step in (2, 5, 7)]
    assert [row["lr"] for row in straight[1]] == pytest.approx(expected)


def read_rows(root) -> list[dict]:
    with (root / "distill" / "tiny" / "key" / "curve.csv").open(newline="", encoding="utf-8") as stream:
        return [{key: float(cell) if cell else None for key, cell in row.items()} for row in csv.DictReader(stream)]


@pytest.mark.parametrize("killed_at", [None, 3, 7])
def test_the_curve_on_disk_has_the_same_rows(tmp_path, killed_at):
    if killed_at is not None:
        with pytest.raises(KilledError):
            run(tmp_path, hook=at(killed_at, killed), log_every_steps=1)
    _, curve = run(tmp_path, log_every_steps=1)
    assert read_rows(tmp_path) == curve
    assert tuple(curve[0]) == CURVE_COLUMNS


def test_the_curve_on_disk_grows_while_training_goes_on(tmp_path):
    seen = []
    run(tmp_path, log_every_steps=2, hook=lambda step: seen.append(len(read_rows(tmp_path))))
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_holdout_is_scored_when_due_and_training_goes_on_in_train_mode(straight, tmp_path):
    def score(net: nn.Module, done: int) -> float:
        net.eval()
        return done / 10

    net, curve = run(tmp_path, holdout=score, evaluate_every_steps=6)
    assert [row["holdout_mean_iou"] for row in curve] == [None, 0.6, 0.8]
    assert_same((net, [row | {"holdout_mean_iou": None} for row in curve]), straight)
