"""A distillation step from cached logits costs what a plain step costs, so a teacher is paid once.

Sizes are tiny and the bound is generous, so that a busy machine passes and a step that runs the teacher does not.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.our_loop import OurLoop, next_steps, student_settings
from benchmarks.rows import seconds_in_turn
from benchmarks.streets import QUICK, Streets
from segdistill.nets.device import Compute

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
BOUND, STEPS, ROUNDS = 1.5, 2, 8


@pytest.fixture(scope="module")
def seconds(tmp_path_factory, one_thread):
    """Return the seconds of plain, cached and live steps in each round, taken in turn."""
    compute = Compute(torch.device("cpu"), torch.float32, 1)
    streets = Streets(tmp_path_factory.mktemp("streets"), QUICK.frame_px, QUICK.frames)
    ours = OurLoop(streets, QUICK, compute, student_settings("tiny"))
    jobs = {
        "plain": ours.job("plain"),
        "cached": ours.job("cached", teacher="views"),
        "live": ours.job("live", teacher="online"),
    }
    return seconds_in_turn({name: next_steps(job, STEPS) for name, job in jobs.items()}, ROUNDS)


def test_a_cached_step_costs_about_what_a_plain_step_costs(seconds):
    # The smallest ratio: other work on the machine does not slow the cached steps of every round.
    assert (seconds["cached"] / seconds["plain"]).min() < BOUND


def test_a_step_that_runs_the_teacher_exceeds_the_bound(seconds):
    assert np.median(seconds["live"] / seconds["plain"]) > BOUND
