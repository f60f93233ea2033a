"""Where frames come from: an official Cityscapes folder, its official zips read in place, or the synthetic city.

H and W are the source's own pixels. Label ids are the official ones (0..33), not trainIds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from segdistill import cityscapes
from segdistill.errors import InputError, raise_together
from segdistill.file_tree import FolderTree, ZipTree
from segdistill.png_file import decoded_label_ids, decoded_photograph, opened_png


class SyntheticParams(Protocol):
    """The part of params.yaml that sizes the synthetic city."""

    train_frames: int
    val_frames: int


class DataParams(Protocol):
    """The `data` section of params.yaml, as far as frames are concerned."""

    source: str  # "synthetic" or "cityscapes"
    root: str | None
    size_px: tuple[int, int] | None  # (H, W); None keeps the size that the frames have
    holdout_fraction: float
    synthetic: SyntheticParams


class FrameError(InputError):
    """All that is wrong with one frame, each fault with its path."""

    def __init__(self, faults: Iterable[str]):
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


@dataclass(frozen=True)
class Frame:
    """One frame of a source: its official split, its name, and the source's own number of it within the split."""

    split: str
    city: str
    sequence: str
    name: str
    index: int


class FrameData(NamedTuple):
    """`image` uint8 (H, W, 3) RGB, `label_ids` uint8 (H, W), `checksum` sha256 hex of what they were read from."""

    image: np.ndarray
    label_ids: np.ndarray
    checksum: str


class FrameSource(Protocol):
    """What `prepare` needs of a source; a source can be pickled, and is cheap to pickle."""

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        """Frames of `split` ("train" or "val") sorted by name, and the faults found while listing them."""

    def path_of(self, frame: Frame) -> str:
        """Where the image of `frame` is, for messages."""

    def size_px(self, frame: Frame) -> tuple[int, int]:
        """(H, W) of the image of `frame`, without decoding it; raises FrameError."""

    def read(self, frame: Frame) -> FrameData:
        """Pixels of `frame`, image and label of one size, label ids all in the table; raises FrameError."""


def open_source(data: DataParams, seed: int) -> FrameSource:
    """The source that `data` asks for; InputError names the params path of what is wrong with it."""
    if data.source == "synthetic":
        if data.size_px is None:
            raise InputError("data.size_px: null; the synthetic city needs a size [height, width] in pixels")
        counts = {"train": data.synthetic.train_frames, "val": data.synthetic.val_frames}
        return SyntheticFrames(seed, counts, tuple(data.size_px))
    if data.source == "cityscapes":
        return _open_cityscapes(data.root)
    raise InputError(f"data.source: '{data.source}'; allowed: synthetic, cityscapes")


@dataclass(frozen=True)
class SyntheticFrames:
    """The built-in city: frames are drawn, not read, at the size that is asked for."""

    seed: int
    counts: dict[str, int]
    frame_size_px: tuple[int, int]

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        from segdistill import synthetic  # here, so that preparing real data does not need it

        frames = []
        for index in range(self.counts[split]):
            city, stem = synthetic.frame_name(split, index)
            frames.append(Frame(split, city, cityscapes.split_stem(stem)[1], stem, index))
        return sorted(frames, key=lambda frame: frame.name), []

    def path_of(self, frame: Frame) -> str:
        return f"synthetic {frame.split} frame {frame.index}"

    def size_px(self, frame: Frame) -> tuple[int, int]:
        return self.frame_size_px

    def read(self, frame: Frame) -> FrameData:
        from segdistill import synthetic

        image, label_ids = synthetic.render_frame(self.seed, frame.split, frame.index, self.frame_size_px)
        return FrameData(image, label_ids, hashlib.sha256(image.tobytes() + label_ids.tobytes()).hexdigest())


def _open_cityscapes(root: str | None) -> CityscapesFrames:
    folder = Path(root or "").expanduser()
    halves = ((cityscapes.IMAGE_FOLDER, cityscapes.IMAGE_ZIP), (cityscapes.LABEL_FOLDER, cityscapes.LABEL_ZIP))
    trees: list[FolderTree | ZipTree] = []
    faults = []
    for top, archive in halves if root else ():
        try:
            if (folder / top).is_dir():
                trees.append(FolderTree(folder / top))
            elif (folder / archive).is_file():
                trees.append(ZipTree(folder / archive, top))
        except InputError as error:
            faults.append(str(error))
    if len(trees) + len(faults) < len(halves):
        faults.append(
            f"data.root: '{root or ''}' {_what_is_in(folder) if root else 'is not set'}; allowed: a folder with "
            f"{' and '.join(f'{top}/' for top, _ in halves)}, or with {' and '.join(name for _, name in halves)}"
        )
    raise_together(faults, "no Cityscapes data")
    return CityscapesFrames(*trees)


def _what_is_in(folder: Path, shown: int = 8) -> str:
    if not folder.is_dir():
        return "is not a folder" if folder.exists() else "does not exist"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return f"holds {', '.join(names[:shown]) or 'nothing'}{', ...' * (len(names) > shown)}"


@dataclass(frozen=True)
class CityscapesFrames:
    """The official data set, each half of it a folder or a zip."""

    images: FolderTree | ZipTree
    labels: FolderTree | ZipTree

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        faults: list[str] = []
        images = _listed(self.images, split, "_leftImg8bit", cityscapes.IMAGE_SUFFIX, faults)
        labels = _listed(self.labels, split, "_gtFine_", cityscapes.LABEL_SUFFIX, faults)
        faults += [f"{images[stem]}: image without a label" for stem in sorted(images.keys() - labels.keys())]
        faults += [f"{labels[stem]}: label without an image" for stem in sorted(labels.keys() - images.keys())]
        stems = sorted(images.keys() & labels.keys())
        return [Frame(split, *cityscapes.split_stem(stem)[:2], stem, row) for row, stem in enumerate(stems)], faults

    def path_of(self, frame: Frame) -> str:
        return self.images.path_of(_file_name(frame, cityscapes.IMAGE_SUFFIX))

    def size_px(self, frame: Frame) -> tuple[int, int]:
        with _naming(self.path_of(frame)):
            content = self.images.read(_file_name(frame, cityscapes.IMAGE_SUFFIX))
            with opened_png(content) as image:
                return image.height, image.width

    def read(self, frame: Frame) -> FrameData:
        faults, decoded = [], []
        digest = hashlib.sha256()
        for tree, suffix, decode in (
            (self.images, cityscapes.IMAGE_SUFFIX, decoded_photograph),
            (self.labels, cityscapes.LABEL_SUFFIX, decoded_label_ids),
        ):
            name = _file_name(frame, suffix)
            try:
                with _naming(tree.path_of(name)):
                    content = tree.read(name)
                    digest.update(content)
                    decoded.append(decode(content))
            except FrameError as error:
                faults += error.faults
        if not faults and decoded[0].shape[:2] != decoded[1].shape:
            image_size, label_size = list(decoded[0].shape[:2]), list(decoded[1].shape)
            faults.append(f"{tree.path_of(name)}: size {label_size}, but its image has {image_size}")
        if faults:
            raise FrameError(faults)
        return FrameData(*decoded, digest.hexdigest())


def _file_name(frame: Frame, suffix: str) -> str:
    return f"{frame.split}/{frame.city}/{frame.name}{suffix}"


def _listed(tree: FolderTree | ZipTree, split: str, marker: str, suffix: str, faults: list[str]) -> dict[str, str]:
    """Path (for messages) of each stem whose file ends in `suffix`; misnamed PNGs go to `faults`.

    Other files that carry the official `marker` (colours, instances, polygons) and hidden files are passed over.
    """
    path_of_stem = {}
    for name in tree.files(split):
        _, city, file = name.split("/")
        if file.startswith(".") or not file.endswith(".png") or (marker in file and not file.endswith(suffix)):
            continue
        try:
            if not file.endswith(suffix):
                raise InputError(f"a PNG here is named <city>_<sequence>_<frame>{suffix}")
            stem = file.removesuffix(suffix)
            if cityscapes.split_stem(stem)[0] != city:
                raise InputError(f"lies in the folder of another city, '{city}'")
            path_of_stem[stem] = tree.path_of(name)
        except InputError as error:
            faults.append(f"{tree.path_of(name)}: {error}")
    return path_of_stem


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn whatever reading or decoding the file at `path` raises into FrameError that name it."""
    try:
        yield
    except Exception as error:  # a damaged PNG or zip makes the decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FrameError([f"{path}: {reason}"]) from error
