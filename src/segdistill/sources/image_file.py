"""Images as people have them: photographs as JPEG or PNG, and label images that are drawn in colours.

H and W are the image's own pixels, as it is to be looked at: a photograph that says how it is to be turned is turned.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from segdistill.base.errors import InputError
from segdistill.sources.png_file import opened_image, opened_png

SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")
# What Pillow opens with 8 bits per channel; more bits would lose their lower half without a word.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 swap height and width


def picture_size_px(content: bytes) -> tuple[int, int]:
    """(H, W) of the photograph in `content`, without decoding it."""
    with opened_image(content, _FORMATS) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def decoded_picture(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a JPEG or PNG, without transparency; InputError for more than 8 bits per channel."""
    with opened_image(content, _FORMATS) as image:
        _check_depth(content, image)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def decoded_label_colors(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a PNG in colours, or of a palette's; InputError for anything else."""
    with opened_png(content) as image:
        _check_depth(content, image)
        if image.mode not in ("P", "RGB", "RGBA"):
            raise InputError(f"mode {image.mode}; labels that are colors have to be RGB or have a palette")
        return np.asarray(image.convert("RGB"))


def _check_depth(content: bytes, image: Image.Image) -> None:
    depth = content[24] if image.format == "PNG" else 8  # of a channel, from the header: Pillow narrows 16 bits unasked
    if image.mode not in _EIGHT_BIT_MODES or depth > 8:
        raise InputError(f"mode {image.mode}, {max(depth, 8)} bit; allowed are 8 bits per channel")
