"""Predict images and videos and write the outputs; report the errors of single inputs after all others are done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image

from segdistill.core.errors import NO_SPACE, UserError, raise_all
from segdistill.core.progress import Progress
from segdistill.predict.images import pixels, read_image
from segdistill.predict.model import Model
from segdistill.predict.outputs import Job, write_image
from segdistill.predict.tiles import Tiling, count_tiles, tiled_classes
from segdistill.predict.video import ClassesOf, write_frames, write_overlay


def class_map(classes_of: ClassesOf, image: Image.Image, tiling: Tiling | None = None) -> np.ndarray:
    """Return the class map uint8 (H, W) of an RGB image, whole or in tiles; `classes_of` predicts a frame or a tile."""
    if tiling is None:
        return classes_of(np.asarray(image))
    size_px = (image.height, image.width)
    return tiled_classes(classes_of, lambda rows, columns: pixels(image, rows, columns), size_px, tiling)


def predict_files(model: Model, jobs: Sequence[Job], tiling: Tiling | None = None) -> None:
    """Predict every source of `jobs` and write its outputs.

    Raises:
        UserError: sources that could not be read or written; all others are done by then.
        OSError: the disk is full.
    """

    def classes_of_frame(image_HW3: np.ndarray) -> np.ndarray:
        if tiling is None:
            return model.classes(image_HW3)
        return tiled_classes(model.classes, lambda *part: image_HW3[part], image_HW3.shape[:2], tiling)

    errors: list[str] = []
    images = [job for job in jobs if not job.source.is_video]
    if tiling is not None and len(images) == 1:
        with _collect(errors, images[0]):
            _predict_large_image(model, images[0], tiling)
    elif images:
        with Progress("predict", len(images), unit="image") as progress:
            for job in images:
                with _collect(errors, job):
                    image = read_image(job.source.path, any_size=tiling is not None)
                    write_image(job.targets, image, class_map(model.classes, image, tiling), model.table)
                progress.advance()
    for job in jobs:
        if job.source.is_video:
            with _collect(errors, job):
                if job.as_frames:
                    write_frames(job.source.path, job.targets, classes_of_frame, model.table)
                else:
                    write_overlay(job.source.path, job.targets["overlay"], classes_of_frame, model.table)
    raise_all(errors, f"{len(jobs) - len(errors)} of {len(jobs)} inputs were predicted; the others were not")


@contextmanager
def _collect(errors: list[str], job: Job) -> Iterator[None]:
    """Add the error of `job` to `errors`; let a full disk end the command, since no other output would fit."""
    try:
        yield
    except UserError as error:
        named = str(job.source.path) in str(error)
        errors.append(str(error) if named else f"{job.source.path}: {error}")
    except MemoryError:
        errors.append(f"{job.source.path}: not enough memory for an input of that size")
    except OSError as error:  # a name that is too long, a folder in the place of a file, no permission
        if error.errno in NO_SPACE:
            raise
        errors.append(f"{job.source.path}: {error.strerror or error}: {error.filename or ''}".removesuffix(": "))


def _predict_large_image(model: Model, job: Job, tiling: Tiling) -> None:
    """Predict one image in tiles, which may take minutes, with a progress bar of the tiles."""
    image = read_image(job.source.path, any_size=True)
    tiles = count_tiles((image.height, image.width), tiling)
    with Progress(f"predict {job.source.path.name}", tiles, unit="tile") as progress:

        def classes_of(tile_HW3: np.ndarray) -> np.ndarray:
            classes_HW = model.classes(tile_HW3)
            progress.advance()
            return classes_HW

        classes_HW = class_map(classes_of, image, tiling)
    write_image(job.targets, image, classes_HW, model.table)
