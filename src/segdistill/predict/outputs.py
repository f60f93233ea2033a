"""Name the output files of images and videos, and write class maps as each kind of output.

Each kind has its own folder: the official evaluator counts every PNG whose name begins with that of a frame as a result
of it, so a colour map in the same folder as the label ids would be a second result.

Shapes: H/W frame in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image

from segdistill.core.errors import UserError, raise_all
from segdistill.core.files import atomic_file
from segdistill.formats.classes import ClassTable
from segdistill.predict import KINDS
from segdistill.predict.inputs import Source

SUFFIXES = dict(zip(KINDS, ("_overlay.jpg", "_color.png", "_labelIds.png"), strict=True))
_PHOTOGRAPH = "_leftImg8bit"  # the end of the names of Cityscapes's photographs
_JPEG_QUALITY = 90
_JPEG_MAX_PX = 65500
_STRIP_PX = 256


class Job(NamedTuple):
    """A source and the path of each kind of output: a file, or a folder for the frames of a video."""

    source: Source
    targets: dict[str, Path]
    as_frames: bool


def plan(sources: Sequence[Source], out: Path, kinds: Sequence[str], *, frames: bool, overwrite: bool) -> list[Job]:
    """Return a job for every source.

    Args:
        kinds: of KINDS; without `frames`, a video has an overlay only.
        frames: write the frames of videos as images.

    Raises:
        UserError: two sources have the same output, or outputs exist and `overwrite` is False.
    """
    jobs = [Job(source, _targets(source, out, kinds, frames), source.is_video and frames) for source in sources]
    owners: dict[Path, Path] = {}
    clashes, existing = [], []
    for job in jobs:
        for target in job.targets.values():
            owner = owners.setdefault(target, job.source.path)
            if owner != job.source.path:
                clashes.append(f"{target}: the output of both {owner} and {job.source.path}")
            elif not overwrite and os.path.exists(target):  # noqa: PTH110 - a Path raises where a name is too long
                existing.append(str(target))
    raise_all(clashes, "some inputs have the same output; predict them into different folders (--out)")
    raise_all(existing, "outputs exist already; --overwrite replaces them, --out names another folder")
    return jobs


def _targets(source: Source, out: Path, kinds: Sequence[str], frames: bool) -> dict[str, Path]:
    if not source.is_video:
        return {kind: image_path(out / kind, source.name, kind) for kind in kinds}
    if frames:
        return {kind: out / kind / source.name.with_name(f"{source.name.name}_frames") for kind in kinds}
    if "overlay" not in kinds:
        raise UserError(f"{source.path}: of a video only the overlay is written; --frames writes its frames as well")
    return {"overlay": out / "overlay" / source.name.with_name(f"{source.name.name}_overlay.mp4")}


def image_path(folder: Path, name: PurePath, kind: str) -> Path:
    """Return the path of one kind of output of the frame `name`, named as the evaluation server requires."""
    return folder / name.with_name(name.name.removesuffix(_PHOTOGRAPH) + SUFFIXES[kind])


def write_image(targets: dict[str, Path], image: Image.Image, classes_HW: np.ndarray, table: ClassTable) -> None:
    """Write the outputs of one frame, each atomically. An overlay changes `image` in place.

    Raises:
        UserError: an overlay of more pixels a side than JPEG allows.
    """
    for kind, target in targets.items():
        if kind == "overlay":
            if max(image.size) > _JPEG_MAX_PX:
                raise UserError(f"{target}: JPEG allows {_JPEG_MAX_PX} pixels a side; use --write color,label-ids")
            # A strip at a time, so that memory never holds a second image of the size.
            for top in range(0, image.height, _STRIP_PX):
                box = (0, top, image.width, min(top + _STRIP_PX, image.height))
                mixed = blended(np.asarray(image.crop(box)), classes_HW[top : box[3]], table)
                image.paste(Image.fromarray(mixed), box)
            _save(target, image, "JPEG", quality=_JPEG_QUALITY)
        elif kind == "color":
            coloured = Image.fromarray(classes_HW)
            coloured.putpalette(table.palette.tobytes())
            _save(target, coloured, "PNG")
        else:
            _save(target, Image.fromarray(table.label_id_of_class[classes_HW]), "PNG")


def _save(target: Path, image: Image.Image, form: str, **options: int) -> None:
    with atomic_file(target) as temporary:
        image.save(temporary, form, **options)


def blended(image_HW3: np.ndarray, classes_HW: np.ndarray, table: ClassTable) -> np.ndarray:
    """Return the mean of an image and the colours of its classes: uint8 (H, W, 3)."""
    total = image_HW3.astype(np.uint16) + table.palette[classes_HW]
    return ((total + 1) // 2).astype(np.uint8)
