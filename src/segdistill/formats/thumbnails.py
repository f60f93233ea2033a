"""Images and class maps as small files: JPEG for photographs, PNG in the colours of the classes for class maps."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from segdistill.formats.classes import ClassTable

WIDTH_PX = 448  # of a thumbnail at most: 500 frames of Cityscapes then weigh a few MB


def as_image(pixels: np.ndarray, table: ClassTable) -> Image.Image:
    """Return RGB uint8 (H, W, 3) as a photograph, a class map uint8 (H, W) in its colours."""
    image = Image.fromarray(pixels)
    if pixels.ndim == 2:
        image.putpalette(table.palette.tobytes())
    return image


def thumbnail(pixels: np.ndarray, table: ClassTable) -> bytes:
    """Return a class map uint8 (H, W) as PNG, or a photograph uint8 (H, W, 3) as JPEG, at most WIDTH_PX wide."""
    image, stream, is_class_map = as_image(pixels, table), io.BytesIO(), pixels.ndim == 2
    if image.width > WIDTH_PX:
        size = (WIDTH_PX, max(1, round(image.height * WIDTH_PX / image.width)))
        # Nearest, because class numbers cannot be averaged.
        image = image.resize(size, Image.Resampling.NEAREST if is_class_map else Image.Resampling.LANCZOS)
    if is_class_map:
        image.save(stream, "PNG")
    else:
        image.save(stream, "JPEG", quality=85)
    return stream.getvalue()
