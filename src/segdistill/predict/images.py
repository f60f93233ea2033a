"""Images as they come from cameras, disks and the web: JPEG and PNG, as upright RGB."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from segdistill.core.errors import UserError

SUFFIXES = (".jpeg", ".jpg", ".png")
# Of one channel with 16 bits Pillow would keep the lower ones, of three the upper ones.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MAX_INFLATED = 1032  # bytes that deflate, in which the pixels of a PNG lie, makes of one
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what Pillow raises


def read_image(path: str | Path, *, any_size: bool = False) -> Image.Image:
    """A JPEG or PNG file as upright RGB of 8 bits: EXIF rotation applied, transparency dropped.

    Args:
        any_size: read also what Pillow takes for an attack by its number of pixels.

    Raises:
        UserError: no such image, a damaged one, or one of more than 8 bits a channel.
    """
    try:
        if Path(path).is_fifo():  # it would be waited for
            raise UserError("a pipe, no file")
        with Path(path).open("rb") as stream, _pixel_limit(any_size):
            image = Image.open(stream, formats=("PNG", "JPEG"))
            _check_size(image, os.fstat(stream.fileno()).st_size)
            return _upright_rgb(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: no readable PNG or JPEG") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise UserError(f"{path}: more than {limit:,} pixels; images of that size are read with --tile") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or f'damaged ({error})'}") from None


def _check_size(image: Image.Image, file_bytes: int) -> None:
    """UserError where a PNG says of itself what cannot be, before there is memory for pixels that cannot come."""
    channels = len(image.getbands())
    bits = 8 * channels if channels > 1 else 1  # at least; Pillow widens what is narrower
    if image.format == "PNG" and image.width * image.height * bits > 8 * _MAX_INFLATED * file_bytes:
        raise UserError(f"truncated: {file_bytes} bytes for {image.height} x {image.width} pixels")


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES:
        raise UserError(f"mode {image.mode}; allowed are 8 bits a channel")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _pixel_limit(any_size: bool) -> Iterator[None]:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # Of large images below the limit, and of transparency that is dropped.
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None if any_size else limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pixels(image: Image.Image, rows: slice, columns: slice) -> np.ndarray:
    """A part of an image, uint8 (h, w, 3), without a copy of the rest."""
    return np.asarray(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
