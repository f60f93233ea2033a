"""What a source of frames gives, and what `prepare` may ask of it.

H and W are the source's own pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from segdistill.core.errors import UserError
from segdistill.formats.classes import ClassTable


class SyntheticParams(Protocol):
    """The part of params.yaml that sizes the synthetic city."""

    train_frames: int
    val_frames: int


class DataParams(Protocol):
    """The `data` section of params.yaml, as far as frames are concerned."""

    source: str  # "synthetic", "cityscapes" or "folder"
    root: str | None
    size_px: tuple[int, int] | None  # (H, W); None keeps the size that the frames have
    holdout_fraction: float
    synthetic: SyntheticParams


class FrameError(UserError):
    """All that is wrong with one frame, each fault with its path."""

    def __init__(self, faults: Iterable[str]):
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


@dataclass(frozen=True)
class Frame:
    """One frame of a source: its split, its name, and the source's own number of it within the split.

    Frames of one `city` look alike, as those of a recording do; they are held out together.
    """

    split: str
    city: str
    sequence: str
    name: str
    index: int


class FrameData(NamedTuple):
    """`image` uint8 (H, W, 3) RGB, `classes` uint8 (H, W), 255 = ignore, `checksum` sha256 hex of their source."""

    image: np.ndarray
    classes: np.ndarray
    checksum: str


class FrameSource(Protocol):
    """What `prepare` needs of a source; a source can be pickled, and is cheap to pickle."""

    table: ClassTable

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        """Frames of `split` ("train" or "val") sorted by name, and the faults found while listing them."""

    def path_of(self, frame: Frame) -> str:
        """Where the image of `frame` is, for messages."""

    def size_px(self, frame: Frame) -> tuple[int, int]:
        """(H, W) of the image of `frame`, without decoding it; raises FrameError."""

    def read(self, frame: Frame) -> FrameData:
        """Pixels of `frame`, image and classes of one size; raises FrameError."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Turn whatever reading or decoding the file at `path` raises into FrameError that name it."""
    try:
        yield
    except Exception as error:  # a damaged PNG or zip makes the decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FrameError([f"{path}: {reason}"]) from error


class Part(NamedTuple):
    """Half of a frame, its image or its classes: where it is, what reads its bytes, and what decodes them."""

    path: str
    read: Callable[[], bytes]
    decode: Callable[[bytes], np.ndarray]


def read_parts(image: Part, classes: Part, coding: str = "") -> FrameData:
    """The image and the classes of a frame; all that is wrong with them in one FrameError.

    Args:
        coding: enters the checksum, where the same bytes may stand for other classes.
    """
    checksum, faults, decoded = hashlib.sha256(coding.encode()), [], []
    for path, read, decode in (image, classes):
        try:
            with naming(path):
                content = read()
                checksum.update(content)
                decoded.append(decode(content))
        except FrameError as error:
            faults += error.faults
    if not faults and decoded[0].shape[:2] != decoded[1].shape:
        image_size, label_size = list(decoded[0].shape[:2]), list(decoded[1].shape)
        faults.append(f"{classes.path}: size {label_size}, but its image has {image_size}")
    if faults:
        raise FrameError(faults)
    return FrameData(*decoded, checksum.hexdigest())


def what_is_in(folder: Path, shown: int = 8) -> str:
    """What a message says about a folder that is not what it should be."""
    if not folder.is_dir():
        if folder.is_symlink() and not folder.exists():
            return "is a link that leads nowhere"
        return "is not a folder" if folder.exists() else "does not exist"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"holds {', '.join(names[:shown]) or 'nothing'}{', ...' * (len(names) > shown)}"


def names_by_group(frames: list[Frame], fraction: float, key: object) -> set[str]:
    """Names of about `fraction` of the `frames`: at least 1, and at least 1 is left (of 2). `key` draws the groups.

    Frames of one city look alike (most of the official sequences hold a single frame), so cities are taken whole.
    The last one taken gives only what is still needed, its last frames: a single stretch of time, which has neighbours
    among the others at one end only.
    """
    groups: dict[str, list[str]] = {}
    for frame in frames:
        groups.setdefault(frame.city, []).append(frame.name)
    wanted = min(max(round(fraction * len(frames)), 1), len(frames) - 1)
    taken: set[str] = set()
    for group in sorted(groups, key=lambda group: hashlib.sha256(f"{key}/{group}".encode()).digest()):
        missing = wanted - len(taken)
        if missing <= 0:
            break
        taken.update(sorted(groups[group])[-missing:])
    return taken
