"""The shards of an array on disk: NAME-00000.npy, NAME-00001.npy and so on, of a thousand frames each.

DVC hashes, pushes and pulls whole files. In shards, a frame that changes moves its shard and not the data set, and a
stopped build of the teacher's logits continues at its shard. Frames are in the order of their names, so a frame that is
added in the middle still changes all later shards.
"""

from __future__ import annotations

FRAMES_PER_SHARD = 1000


def shard_file(name: str, number: int) -> str:
    """Return the name of the file of a shard of the array `name`."""
    return f"{name}-{number:05d}.npy"


def shards_of(frames: int) -> list[range]:
    """Return which of `frames` each shard has; the last may have fewer than the others."""
    firsts = range(0, frames, FRAMES_PER_SHARD)
    return [range(first, min(first + FRAMES_PER_SHARD, frames)) for first in firsts]
