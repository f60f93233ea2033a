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
    """An image or a video; `name` is its path within the folder that the user named, without its suffix."""

    path: Path
    name: PurePath

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def find_sources(inputs: Sequence[str], out: Path) -> list[Source]:
    """Return every image and video that `inputs` names, sorted within each input, none twice.

    Search folders with all sub-folders for images only. Skip hidden files, `out`, and the outputs in a folder that is
    both an input and `out`.

    Raises:
        UserError: inputs that do not exist, hold no image, or are neither an image nor a video; all in one message.
    """
    errors: list[str] = []
    found: dict[Path, Source] = {}
    for text in inputs:
        paths = [text]
        if not Path(text).exists() and glob.has_magic(text):
            paths = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - a Path takes no absolute pattern
            if not paths:
                errors.append(f"{text}: matches nothing")
        for path in paths:
            for source in _sources_at(Path(path), out, errors):
                found.setdefault(source.path.resolve(), source)
    raise_all(errors, "some inputs cannot be predicted")
    return list(found.values())


def _sources_at(path: Path, out: Path, errors: list[str]) -> Iterator[Source]:
    """Yield the images of a folder, or the file at `path`; add what cannot be predicted to `errors`."""
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
    """Yield the images below a folder, without hidden ones and without those that this command wrote into `out`."""
    written = {out, *(out / kind for kind in KINDS)}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and (Path(parent) / name).resolve() not in written]
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent) / name
