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
from segdistill.prepare.images import MAX_INFLATED, upright

SUFFIXES = (".bmp", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
# Pillow keeps the lower 8 of 16 bits in images of one channel, and the upper 8 in images of three.
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # what Pillow raises


def read_image(path: str | Path, *, any_size: bool = False) -> Image.Image:
    """Return an image as RGB of 8 bits: apply the EXIF rotation, drop transparency.

    Read the first of a file with several images (TIFF pages, animations, MPO).

    Args:
        any_size: also read images with so many pixels that Pillow takes them for an attack.

    Raises:
        UserError: the image is missing, is damaged, or has more than 8 bits a channel.
    """
    try:
        if Path(path).is_fifo():  # opening it would wait for a writer
            raise UserError("a pipe, no file")
        with Path(path).open("rb") as stream, _pixel_limit(any_size):
            stored = Image.open(stream, formats=_FORMATS)
            # Refuse a PNG that names a size which its bytes cannot hold, before Pillow allocates memory for it.
            file_bytes, channels = os.fstat(stream.fileno()).st_size, len(stored.getbands())
            bits = 8 * channels if channels > 1 else 1  # at least: Pillow widens pixels of 1, 2 and 4 bits
            if stored.format == "PNG" and stored.width * stored.height * bits > 8 * MAX_INFLATED * file_bytes:
                raise UserError(f"truncated: {file_bytes} bytes for {stored.height} x {stored.width} pixels")
            if stored.mode in _WIDE_MODES:
                raise UserError(f"mode {stored.mode}; allowed are 8 bits a channel")
            stored.load()  # before `upright`, which ignores every error while it reads EXIF data
            image = upright(stored)
            return image if image.mode == "RGB" else image.convert("RGB")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: no readable PNG, JPEG, WebP, BMP or TIFF") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise UserError(f"{path}: more than {limit:,} pixels; images of that size are read with --tile") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or f'damaged ({error})'}") from None


@contextlib.contextmanager
def _pixel_limit(any_size: bool) -> Iterator[None]:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        # Pillow warns about large images below the limit, dropped transparency and broken EXIF data.
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None if any_size else limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pixels(image: Image.Image, rows: slice, columns: slice) -> np.ndarray:
    """Return a part of an image, uint8 (h, w, 3), without copying the rest."""
    return np.asarray(image.crop((columns.start, rows.start, columns.stop, rows.stop)))
