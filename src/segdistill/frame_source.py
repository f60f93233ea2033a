"""Where frames come from: an official Cityscapes folder, its official zips read in place, or the synthetic city.

H and W are the source's own pixels. Label ids are the official ones (0..33), not trainIds.
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from segdistill import cityscapes
from segdistill.errors import InputError, raise_together

# A PNG cannot sensibly outgrow its own pixels; this keeps a crafted archive from filling the memory.
MAX_FILE_BYTES = 3 * Image.MAX_IMAGE_PIXELS
_PNG_GREYSCALE, _PNG_RGB, _PNG_PALETTE = 0, 2, 3


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


class FolderTree:
    """`leftImg8bit/` or `gtFine/` as a folder; symbolic links are followed."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path_of(self, name: str) -> str:
        return str(self.folder / name)

    def files(self, split: str) -> list[str]:
        """Sorted `<split>/<city>/<file>` names."""
        return sorted(path.relative_to(self.folder).as_posix() for path in (self.folder / split).glob("*/*"))

    def read(self, name: str) -> bytes:
        with (self.folder / name).open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)


class ZipTree:
    """`leftImg8bit/` or `gtFine/` inside its official zip, read in place.

    InputError when the file is no zip, or when any member of it would lie outside the archive's own folder.
    """

    def __init__(self, path: Path, top: str):
        self.path, self.top = path, top
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: no readable zip ({error})") from None
        names = (PurePosixPath(name.replace("\\", "/")) for name in self.archive.namelist())
        outside = [name for name in names if name.is_absolute() or ".." in name.parts]
        raise_together((f"{path}: {name}" for name in outside), "zip members with an absolute path or '..' are refused")

    def __reduce__(self):
        return ZipTree, (self.path, self.top)  # an open archive cannot be shared: each process opens its own

    def path_of(self, name: str) -> str:
        return f"{self.path}: {self.top}/{name}"

    def files(self, split: str) -> list[str]:
        """Sorted `<split>/<city>/<file>` names."""
        members = (PurePosixPath(name).parts for name in self.archive.namelist() if not name.endswith("/"))
        return sorted("/".join(parts[1:]) for parts in members if len(parts) == 4 and parts[:2] == (self.top, split))

    def read(self, name: str) -> bytes:
        with self.archive.open(f"{self.top}/{name}") as member:
            return member.read(MAX_FILE_BYTES + 1)


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
            with _opened_png(content) as image:
                return image.height, image.width

    def read(self, frame: Frame) -> FrameData:
        faults, decoded = [], []
        digest = hashlib.sha256()
        for tree, suffix, decode in (
            (self.images, cityscapes.IMAGE_SUFFIX, _decoded_photograph),
            (self.labels, cityscapes.LABEL_SUFFIX, _decoded_label_ids),
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


@contextmanager
def _opened_png(content: bytes) -> Iterator[Image.Image]:
    """The still undecoded PNG in `content`; raises on anything that is no PNG, and on an absurd size."""
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"larger than the {MAX_FILE_BYTES} bytes that are read")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=["PNG"])
        except UnidentifiedImageError:
            raise InputError(f"no readable PNG ({len(content)} bytes)") from None
    with image:
        yield image


def _depth_and_kind(content: bytes) -> tuple[int, int]:
    """Bits per channel and colour type of a PNG, from its header: Pillow narrows 16 bits, and widens 4, unasked."""
    return content[24], content[25]


def _decoded_photograph(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB; InputError for anything but an 8-bit RGB PNG."""
    with _opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (depth, kind) != (8, _PNG_RGB):
            raise InputError(f"mode {image.mode}, {depth} bit; a photograph has to be RGB, 8 bit")
        return np.asarray(image)


def _decoded_label_ids(content: bytes) -> np.ndarray:
    """uint8 (H, W) label ids, all in the table; InputError otherwise."""
    with _opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if kind != _PNG_PALETTE and (depth, kind) != (8, _PNG_GREYSCALE):
            raise InputError(f"mode {image.mode}, {depth} bit; labels have to be 8-bit greyscale or palette indices")
        present = np.flatnonzero(image.histogram())  # counted by Pillow in C: cheaper than any array operation
        unknown = [label_id for label_id in present if not cityscapes.KNOWN_LABEL_ID[label_id]]
        if unknown:
            raise InputError(f"label ids {', '.join(map(str, unknown))} are not in the table; allowed: 0 to 33")
        return np.asarray(image)
