"""Find the inputs: images, folders of images, globs and videos, each with a name for its outputs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from segdistill.core.errors import raise_all
from segdistill.predict import KINDS
from segdistill.predict.images import SUFFIXES

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_IMAGES, _VIDEOS = ", ".join(SUFFIXES), ", ".join(VIDEO_SUFFIXES)


class Source(NamedTuple):
    """An image or a video; `name` is its path within the folder that was given, without its suffix."""

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Sequence[str], out: Path) -> list[Source]:
    """Return every image and video that `inputs` names, sorted within each, none twice.

    Folders are searched with all sub-folders, for images only, without hidden files and without `out`. Where `out` is
    such a folder itself, the outputs in it are left out.

    Raises:
        UserError: inputs that do not exist, hold no image, or are neither an image nor a video; all in one message.
    """
    errors: list[str] = []
    found: dict[Path, Source] = {}
    for text in inputs:
        for source in _sources_of(text, out, errors):
            found.setdefault(source.path.resolve(), source)
    raise_all(errors, "some inputs cannot be predicted")
    return list(found.values())


def _sources_of(text: str, out: Path, errors: list[str]) -> Iterator[Source]:
    path = Path(text)
    if not path.exists() and glob.has_magic(text):
        matches = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - a Path takes no absolute pattern
        if not matches:
            errors.append(f"{text}: matches nothing")
        for match in matches:
            yield from _sources_of_path(Path(match), out, errors)
    else:
        yield from _sources_of_path(path, out, errors)


def _sources_of_path(path: Path, out: Path, errors: list[str]) -> Iterator[Source]:
    if path.is_dir():
        below = sorted(_images_below(path, out.resolve()))
        if not below:
            errors.append(f"{path}: holds no image ({_IMAGES})")
        yield from (Source(file, file.relative_to(path).with_suffix("")) for file in below)
    elif not path.exists():
        errors.append(f"{path}: no such file or folder")
    elif path.suffix.lower() not in SUFFIXES + VIDEO_SUFFIXES:
        errors.append(f"{path}: neither an image ({_IMAGES}) nor a video ({_VIDEOS})")
    else:
        yield Source(path, PurePath(path.stem))


def _images_below(folder: Path, out: Path) -> Iterator[Path]:
    written = {out, *(out / kind for kind in KINDS)}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and (Path(parent) / name).resolve() not in written]
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent) / name
