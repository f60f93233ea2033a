"""Read images of cameras, disks and the web as upright RGB: JPEG, PNG, WebP, BMP, TIFF."""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from segdistill.core.errors import UserError

SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow keeps the lower 8 of 16 bits in images of one channel, and the upper 8 in images of three.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_MAX_INFLATED = 1032  # bytes that deflate, the compression of PNG, makes of one
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what Pillow raises


def read_image(path: str | Path, *, any_size: bool = False) -> Image.Image:
    """Return an image file as upright RGB of 8 bits: EXIF rotation applied, transparency dropped.

    Of a file with several images (TIFF pages, animations, MPO) it is the first.

    Args:
        any_size: also read images with so many pixels that Pillow takes them for an attack.

    Raises:
        UserError: no such image, a damaged one, or one of more than 8 bits a channel.
    """
    try:
        if Path(path).is_fifo():  # opening it would wait for a writer
            raise UserError("a pipe, no file")
        with Path(path).open("rb") as stream, _pixel_limit(any_size):
            image = Image.open(stream, formats=_FORMATS)
            _check_size(image, os.fstat(stream.fileno()).st_size)
            return _upright_rgb(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: no readable PNG, JPEG, WebP, BMP or TIFF") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{path}: more than {limit:,} pixels; images of that size are read with --tile") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or f'damaged ({error})'}") from None


def _check_size(image: Image.Image, file_bytes: int) -> None:
    """Raise a UserError where a PNG names a size that its bytes cannot hold, before memory is allocated for it."""
    channels = len(image.getbands())
    bits = 8 * channels if channels > 1 else 1  # at least; Pillow widens what is narrower
    if image.format == "PNG" and image.width * image.height * bits > 8 * _MAX_INFLATED * file_bytes:
        raise UserError(f"truncated: {file_bytes} bytes for {image.height} x {image.width} pixels")


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES:
        raise UserError(f"mode {image.mode}; allowed are 8 bits a channel")
    image.load()
    # ImageOps.exif_transpose also writes the other EXIF data again, and fails on broken ones (an unsigned rational that
    # is negative). Viewers ignore those, and turn the image all the same.
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything for data that are not EXIF
        orientation = None
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    return image if image.mode == "RGB" else image.convert("RGB")


@contextlib.contextmanager
def _pixel_limit(any_size: bool) -> Iterator[None]:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # Pillow warns of large images below the limit, of dropped transparency and of broken EXIF data.
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None if any_size else limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pixels(image: Image.Image, rows: slice, columns: slice) -> np.ndarray:
    """Return a part of an image, uint8 (h, w, 3), without copying the rest."""
    return np.asarray(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
