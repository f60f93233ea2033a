"""A training that was stopped or killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import os
import signal

import pytest

from segdistill.training.checkpoint import TrainingStoppedError
from segdistill.training.mixing import Mixer
from support.tiny_training import KilledError, TinyNet, assert_same, at, distilled, killed, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """8 steps in one go."""
    return run(tmp_path_factory.mktemp("straight"))


def test_two_trainings_are_equal_bit_for_bit(straight, tmp_path):
    assert_same(run(tmp_path), straight)


@pytest.mark.parametrize("step", range(8))
def test_training_killed_at_any_step_ends_with_the_same_bits(straight, tmp_path, step):
    with pytest.raises(KilledError):
        run(tmp_path, hook=at(step, killed))
    assert_same(run(tmp_path, net=TinyNet(seed=1 if step >= 4 else 0)), straight)


def test_training_killed_at_every_step_ends_with_the_same_bits(straight, tmp_path):
    for step in range(1, 8):
        with pytest.raises(KilledError):
            run(tmp_path, hook=at(step, killed), checkpoint_every_steps=1)
    assert_same(run(tmp_path, checkpoint_every_steps=1), straight)


def test_resumed_training_starts_after_its_checkpoint(tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, hook=at(6, killed))
    seen = []
    run(tmp_path, hook=seen.append)
    assert seen == [4, 5, 6, 7]


def test_distillation_resumes_with_the_same_bits(tmp_path):
    expected = run(tmp_path / "straight", **distilled())
    with pytest.raises(KilledError):
        run(tmp_path / "killed", hook=at(6, killed), **distilled())
    assert_same(run(tmp_path / "killed", **distilled()), expected)


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_training_on_mixed_crops_resumes_with_the_same_bits(straight, tmp_path, kind):
    mixer = Mixer(kind, 1.0, 0, "distill", 4)
    expected = run(tmp_path / "straight", **distilled(), mixer=mixer)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", hook=at(6, killed), **distilled(), mixer=mixer)
    assert_same(run(tmp_path / "killed", **distilled(), mixer=mixer), expected)
    assert expected[1] != run(tmp_path / "unmixed", **distilled())[1]


def test_finished_training_is_not_repeated(straight, tmp_path):
    run(tmp_path)
    assert_same(run(tmp_path, net=TinyNet(seed=1), hook=lambda step: killed()), straight)


def test_training_of_another_key_ignores_an_old_checkpoint(straight, tmp_path):
    with pytest.raises(KilledError):
        run(tmp_path, key="old", hook=at(6, killed), lr=0.5)
    assert_same(run(tmp_path, key="new"), straight)


def test_outdated_checkpoint_is_removed(tmp_path):
    run(tmp_path, key="old")
    run(tmp_path, key="new")
    assert not (tmp_path / "distill" / "tiny" / "old").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_saves_after_the_running_step(straight, tmp_path, signal_number):
    with pytest.raises(
        TrainingStoppedError, match=r"distill/tiny: stopped after step 3 of 8; dvc repro continues from there"
    ):
        run(tmp_path, hook=at(2, lambda: os.kill(os.getpid(), signal_number)))
    seen = []
    assert_same(run(tmp_path, hook=seen.append), straight)
    assert seen == [3, 4, 5, 6, 7]


def test_signal_handlers_are_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    run(tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
