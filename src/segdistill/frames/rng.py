"""Random numbers as a function of what they are for, never of what was drawn before.

Every draw names its seed, its purpose and its counters (step, frame, view ...). Resuming a run, adding workers or
adding machines can then not change a single draw.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh generator for (seed, purpose, counters); equal arguments give equal streams on every machine."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def view_origins(
    seed: int, frames: int, views: int, frame_px: tuple[int, int], crop_px: tuple[int, int], stride: int
) -> np.ndarray:
    """Top-left corners of the crop views, int64 (frames, views, 2) in pixels, multiples of `stride`.

    Frame by frame, so that a longer data set keeps the views of its first frames.
    """
    steps = [(frame - crop) // stride + 1 for frame, crop in zip(frame_px, crop_px, strict=True)]
    draws = [generator(seed, "views", frame).random((views, 2)) for frame in range(frames)]
    return (np.asarray(draws).reshape(frames, views, 2) * steps).astype(np.int64) * stride


class BatchPlan(NamedTuple):
    """What goes into one batch of B crops: indices (B,) of frame and view, flips bool (B,), colour factors (B, 3).

    `seed` is for what the net itself draws in this step (dropout).
    """

    seed: int
    frames: np.ndarray
    views: np.ndarray
    flips: np.ndarray
    colour: np.ndarray


class Batches:
    """The batches of a training: batch number `step` is a pure function of (seed, step).

    Frames are drawn without replacement, epoch after epoch; a batch may span the end of one.
    """

    def __init__(
        self, seed: int, phase: str, frames: int, views: int, batch: int, flip_probability: float, jitter: float
    ) -> None:
        # Two phases of one run (distill, finetune) do not repeat each other's batches.
        self.phase = phase
        self.seed, self.frames, self.views, self.batch = seed, frames, views, batch
        self.flip_probability, self.jitter = flip_probability, jitter
        self._orders: dict[int, np.ndarray] = {}

    def plan(self, step: int) -> BatchPlan:
        positions = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, places = np.divmod(positions, self.frames)
        own = generator(self.seed, f"{self.phase} batch", step)
        draws = own.random((self.batch, 5))
        return BatchPlan(
            seed=int(own.integers(2**63)),
            frames=np.array([self._order(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]),
            views=(draws[:, 0] * self.views).astype(np.int64),
            flips=draws[:, 1] < self.flip_probability,
            colour=1 + self.jitter * (2 * draws[:, 2:] - 1),
        )

    def drawn(self, steps: int) -> np.ndarray:
        """Which views of each frame the first `steps` batches draw, bool (N, K)."""
        drawn = np.zeros((self.frames, self.views), bool)
        for step in range(steps):
            plan = self.plan(step)
            drawn[plan.frames, plan.views] = True
        return drawn

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # A batch touches its own epoch and at most the neighbouring ones: older orders are not needed again.
            self._orders = {known: order for known, order in self._orders.items() if known >= epoch - 1}
            self._orders[epoch] = generator(self.seed, f"{self.phase} epoch", epoch).permutation(self.frames)
        return self._orders[epoch]
