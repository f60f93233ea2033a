"""What a source of frames gives to `prepare`.

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


class FrameError(UserError):
    """All errors of one frame, each with its path."""

    def __init__(self, errors: Iterable[str]):
        self.errors = list(errors)
        super().__init__("\n".join(self.errors))


@dataclass(frozen=True)
class Frame:
    """One frame of a source: its split, its name, and the source's own number of it within the split.

    Frames of one `city`, such as those of a recording, look alike: they are held out together.
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
    """What `prepare` needs of a source. Sources are pickled, once for each worker process."""

    @property
    def table(self) -> ClassTable:
        """Return the classes."""

    @property
    def independent_frames(self) -> bool:
        """Return whether frames of one group are rendered independently: the holdout may then take a part of one."""

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        """Return the frames of `split` ("train" or "val") sorted by name, and the errors found while listing them."""

    def path_of(self, frame: Frame) -> str:
        """Return the path of the image of `frame`, for messages."""

    def size_px(self, frame: Frame) -> tuple[int, int]:
        """Return (H, W) of `frame` without decoding it; raise FrameError where it is unreadable."""

    def read(self, frame: Frame) -> FrameData:
        """Return the pixels of `frame`, image and classes of one size; raise FrameError where they are unreadable."""

    def suspicions(self, pixels_C: np.ndarray) -> Iterator[str]:
        """Yield what looks wrong about the number of pixels of each class, over all frames."""


@contextmanager
def name_path(path: str) -> Iterator[None]:
    """Turn any exception of the body into a FrameError that names `path`."""
    try:
        yield
    except Exception as error:  # a damaged PNG or zip makes the decoders raise nearly any type
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FrameError([f"{path}: {reason}"]) from error


class Part(NamedTuple):
    """Half of a frame, its image or its label: where it is, and what reads its bytes."""

    path: str
    read: Callable[[], bytes]


def read_pair(
    image: Part,
    label: Part,
    decode_image: Callable[[bytes, tuple[int, ...] | None], np.ndarray],
    decode_label: Callable[[bytes], np.ndarray],
    coding: str = "",
) -> FrameData:
    """Return the image and the classes of a frame; raise one FrameError for all errors in them.

    Args:
        decode_image: makes pixels (H, W, 3) of bytes and the size of the label, None where that is unreadable.
        decode_label: makes classes (H, W) of bytes.
        coding: enters the checksum, because the same bytes are other classes with another coding.
    """
    checksum, errors = hashlib.sha256(coding.encode()), []
    pixels = classes = None
    try:
        with name_path(image.path):
            content = image.read()
            checksum.update(content)
    except FrameError as error:
        content = None
        errors += error.errors
    try:
        with name_path(label.path):
            label_content = label.read()
            checksum.update(label_content)
            classes = decode_label(label_content)
    except FrameError as error:
        errors += error.errors
    if content is not None:
        try:
            with name_path(image.path):
                pixels = decode_image(content, None if classes is None else classes.shape)
        except FrameError as error:
            errors += error.errors
    if pixels is not None and classes is not None and pixels.shape[:2] != classes.shape:
        errors.append(f"{label.path}: size {list(classes.shape)}, but its image has {list(pixels.shape[:2])}")
    if errors or pixels is None or classes is None:
        raise FrameError(errors)
    return FrameData(pixels, classes, checksum.hexdigest())


def describe_folder(folder: Path, shown: int = 8) -> str:
    """Return what a message says about a folder that is not what it should be."""
    if not folder.is_dir():
        if folder.is_symlink() and not folder.exists():
            return "is a link that leads nowhere"
        return "is not a folder" if folder.exists() else "does not exist"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"holds {', '.join(names[:shown]) or 'nothing'}{', ...' * (len(names) > shown)}"


def draw_groups(frames: list[Frame], fraction: float, key: object) -> set[str]:
    """Return the names of about `fraction` of the `frames`, in whole groups; none where there is one group only.

    Groups are drawn by `key`. A group that would exceed the fraction by more than it now falls short is passed over;
    where every group is that large, the smallest is taken. One group at least is left.
    """
    groups = _groups_in_drawn_order(frames, key)
    wanted = _wanted(frames, fraction)
    taken: set[str] = set()
    for members in groups:
        if len(members) <= 2 * (wanted - len(taken)) and len(taken) + len(members) < len(frames):
            taken.update(members)
    if not taken and len(groups) > 1:
        smallest = min(groups, key=len)
        taken.update(smallest)
    return taken


def draw_frames(frames: list[Frame], fraction: float, key: object) -> set[str]:
    """Return the names of just `fraction` of the `frames`: at least 1, and at least 1 is left (of 2).

    Whole groups are drawn by `key`; the last one gives only what is still needed, its last frames: one stretch of time,
    which has neighbours among the others at one end only.
    """
    wanted = _wanted(frames, fraction)
    taken: set[str] = set()
    for members in _groups_in_drawn_order(frames, key):
        missing = wanted - len(taken)
        taken.update(members[len(members) - min(missing, len(members)) :])
    return taken


def _wanted(frames: list[Frame], fraction: float) -> int:
    return min(max(round(fraction * len(frames)), 1), len(frames) - 1)


def _groups_in_drawn_order(frames: list[Frame], key: object) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for frame in frames:
        groups.setdefault(frame.city, []).append(frame.name)
    drawn = sorted(groups, key=lambda group: hashlib.sha256(f"{key}/{group}".encode()).digest())
    return [sorted(groups[group]) for group in drawn]
