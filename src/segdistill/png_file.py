"""The two kinds of PNG that Cityscapes is made of: photographs and label maps. Anything else is refused.

H and W are the file's own pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from segdistill import cityscapes
from segdistill.errors import InputError

# A PNG cannot sensibly outgrow its own pixels; this keeps a crafted archive from filling the memory.
MAX_FILE_BYTES = 3 * Image.MAX_IMAGE_PIXELS
_PNG_GREYSCALE, _PNG_RGB, _PNG_PALETTE = 0, 2, 3


@contextmanager
def opened_png(content: bytes) -> Iterator[Image.Image]:
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


def decoded_photograph(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB; InputError for anything but an 8-bit RGB PNG."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (depth, kind) != (8, _PNG_RGB):
            raise InputError(f"mode {image.mode}, {depth} bit; a photograph has to be RGB, 8 bit")
        return np.asarray(image)


def decoded_label_ids(content: bytes) -> np.ndarray:
    """uint8 (H, W) label ids, all in the table; InputError otherwise."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if kind != _PNG_PALETTE and (depth, kind) != (8, _PNG_GREYSCALE):
            raise InputError(f"mode {image.mode}, {depth} bit; labels have to be 8-bit greyscale or palette indices")
        present = np.flatnonzero(image.histogram())  # counted by Pillow in C: cheaper than any array operation
        unknown = [label_id for label_id in present if not cityscapes.KNOWN_LABEL_ID[label_id]]
        if unknown:
            raise InputError(f"label ids {', '.join(map(str, unknown))} are not in the table; allowed: 0 to 33")
        return np.asarray(image)
