"""A training that was stopped, killed or resumed ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal

import pytest

from segdistill.training.checkpoint import TrainingStoppedError
from support.tiny_training import KilledError, TinyNet, assert_same, at, distilled, killed, run

pytestmark = pytest.mark.usefixtures("one_thread")


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
