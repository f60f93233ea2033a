"""Views and batches: random draws that depend on their purpose and counters, never on earlier draws.

Every draw names its seed, its purpose and its counters (step, frame, view ...). So resuming a run, adding workers or
adding machines cannot change a single draw.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np

from segdistill.data.prepared import PreparedData
from segdistill.formats.header import MEAN, STD

UNSCALED = (1.0, 1.0)


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a fresh generator for (seed, purpose, counters); equal arguments give equal streams on every machine."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@dataclass(frozen=True)
class ViewSpec:
    """The crop views of the train frames that a training draws from; a cache of teacher logits is made for one spec.

    Attributes:
        data_fingerprint: of the prepared data.
        frames: N train frames.
        frame_px: (H, W) of a frame.
        crop_px: (H, W) of a view, as the networks see it.
        views: K views per frame.
        stride: the corners of unscaled views are multiples of it; in a cache, also the input pixels per stored logit.
        seed: draws the corners and scales.
        scale_range: smallest and largest scale of a view: at scale s it is a window of crop_px / s pixels of the frame,
            resized to crop_px.
    """

    data_fingerprint: str
    frames: int
    frame_px: tuple[int, int]
    crop_px: tuple[int, int]
    views: int
    stride: int
    seed: int
    scale_range: tuple[float, float] = UNSCALED

    @classmethod
    def of(
        cls,
        data: PreparedData,
        crop_px: tuple[int, int],
        views: int,
        stride: int,
        seed: int,
        scale_range: tuple[float, float] = UNSCALED,
    ) -> ViewSpec:
        """Return the spec of views of the train split of `data`."""
        train = data.train
        return cls(data.fingerprint, len(train), train.size_px, crop_px, views, stride, seed, scale_range)

    def facts(self) -> dict:
        """Return the spec as JSON-like values, with the normalisation of the pixels that the teacher sees."""
        facts = asdict(self) | {"frame_px": list(self.frame_px), "crop_px": list(self.crop_px)}
        if self.scale_range == UNSCALED:
            del facts["scale_range"]  # so that caches from before there were scales stay valid
        else:
            facts["scale_range"] = list(self.scale_range)
        return facts | {"normalisation": {"mean": list(MEAN), "std": list(STD)}}

    def origins(self) -> np.ndarray:
        """Return the top-left corners of the views in their frames, int64 (N, K, 2) in pixels.

        They are drawn frame by frame, so that a longer data set keeps the views of its first frames. Those of unscaled
        views are multiples of `stride`, so that crops of whole-frame logits start at a cell.
        """
        stride = self.stride if self.scale_range == UNSCALED else 1
        places = (np.asarray(self.frame_px) - self.sizes()) // stride + 1
        draws = [generator(self.seed, "views", frame).random((self.views, 2)) for frame in range(self.frames)]
        return (np.asarray(draws).reshape(self.frames, self.views, 2) * places).astype(np.int64) * stride

    def sizes(self) -> np.ndarray:
        """Return heights and widths of the views' windows in their frames, int64 (N, K, 2) in pixels: crop_px / s.

        The scale s is uniform over `scale_range`, as in the usual recipes. Where the window of a small scale would not
        fit into the frame, the range begins at the smallest scale that fits: padding would teach networks its edges.
        """
        if self.scale_range == UNSCALED:
            return np.broadcast_to(np.asarray(self.crop_px, np.int64), (self.frames, self.views, 2))
        crop_px, (smallest, largest) = np.asarray(self.crop_px), self.scale_range
        smallest = max(smallest, *(crop_px / self.frame_px))
        draws = [generator(self.seed, "view scales", frame).random(self.views) for frame in range(self.frames)]
        scales = smallest + (largest - smallest) * np.asarray(draws).reshape(self.frames, self.views, 1)
        # Rounding may pass the frame by a pixel.
        return np.rint(crop_px / scales).astype(np.int64).clip(1, self.frame_px)


class BatchIndices(NamedTuple):
    """The draws of one batch of B crops: indices (B,) of frame and view, flips bool (B,), colour factors (B, 3).

    `seed` is for the random draws of the network in this step (dropout).
    """

    seed: int
    frames: np.ndarray
    views: np.ndarray
    flips: np.ndarray
    colour: np.ndarray

    def part(self, crops: slice | np.ndarray) -> BatchIndices:
        """Return the draws of some crops of the batch; the seed is that of the batch."""
        return BatchIndices(self.seed, *(draws[crops] for draws in self[1:]))


class BatchSampler:
    """The batches of a training: batch number `step` is a pure function of (seed, step).

    Frames are drawn without replacement, epoch after epoch; a batch may span the end of one.

    Args:
        phase: distill, finetune or teacher; two phases of one run do not repeat each other's batches.
        jitter: brightness, contrast and saturation vary by a factor in 1 +- this.
        drawn_from: the frames to draw from, int (M,); None is all of `frames`.
    """

    def __init__(
        self,
        seed: int,
        phase: str,
        frames: int,
        views: int,
        batch_size: int,
        flip_probability: float,
        jitter: float,
        drawn_from: np.ndarray | None = None,
    ) -> None:
        self.phase = phase
        self.seed, self.frames, self.views, self.batch_size = seed, frames, views, batch_size
        self.flip_probability, self.jitter = flip_probability, jitter
        self.drawn_from = np.arange(frames) if drawn_from is None else drawn_from
        self._orders: dict[int, np.ndarray] = {}

    def indices(self, step: int) -> BatchIndices:
        """Return the draws of batch number `step`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, len(self.drawn_from))
        own = generator(self.seed, f"{self.phase} batch", step)
        draws = own.random((self.batch_size, 5))
        return BatchIndices(
            seed=int(own.integers(2**63)),
            frames=np.array([self._order(int(epoch))[place] for epoch, place in zip(epochs, places, strict=True)]),
            views=(draws[:, 0] * self.views).astype(np.int64),
            flips=draws[:, 1] < self.flip_probability,
            colour=1 + self.jitter * (2 * draws[:, 2:] - 1),
        )

    def drawn(self, steps: int) -> np.ndarray:
        """Return which views of each frame the first `steps` batches draw, bool (N, K)."""
        drawn = np.zeros((self.frames, self.views), bool)
        for step in range(steps):
            indices = self.indices(step)
            drawn[indices.frames, indices.views] = True
        return drawn

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            # A batch touches its own epoch and at most the neighbouring ones, so older orders are not needed again.
            self._orders = {known: order for known, order in self._orders.items() if known >= epoch - 1}
            order = generator(self.seed, f"{self.phase} epoch", epoch).permutation(len(self.drawn_from))
            self._orders[epoch] = self.drawn_from[order]
        return self._orders[epoch]
