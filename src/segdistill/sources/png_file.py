"""The two kinds of PNG that Cityscapes is made of: photographs and label ids. Anything else is refused.

H and W are the file's own pixels.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from segdistill.base.errors import InputError

# A PNG cannot sensibly outgrow its own pixels; this keeps a crafted archive from filling the memory.
MAX_FILE_BYTES = 3 * Image.MAX_IMAGE_PIXELS
_PNG_GREYSCALE, _PNG_RGB, _PNG_PALETTE = 0, 2, 3
_CHANNELS = {_PNG_RGB: 3, 4: 2, 6: 4}  # by colour type: with alpha, grey has two and RGB four
_MOST_INFLATED = 1032  # bytes that deflate, in which the pixels lie, makes of one


def opened_png(content: bytes) -> contextlib.AbstractContextManager[Image.Image]:
    """The still undecoded PNG in `content`; raises on anything that is no PNG, and on an absurd size."""
    return opened_image(content, ("PNG",))


@contextlib.contextmanager
def opened_image(content: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The still undecoded image in `content`; raises on anything but these formats of Pillow, and on an absurd size."""
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"larger than the {MAX_FILE_BYTES} bytes that are read")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        except UnidentifiedImageError:
            raise InputError(f"no readable {' or '.join(formats)} ({len(content)} bytes)") from None
    with image:
        if image.format == "PNG":
            _check_header(content, image)
        yield image


def _check_header(content: bytes, image: Image.Image) -> None:
    """InputError where a PNG says of itself what cannot be."""
    # The standard wants one header, and it first; Pillow goes by the last one, wherever it is.
    if content[12:16] != b"IHDR" or struct.unpack(">II", content[16:24]) != image.size:
        raise InputError("no PNG of the standard: its first chunk is not its only header")
    depth, kind = _depth_and_kind(content)
    # Told before a decoder gets memory for pixels that cannot come.
    if image.width * image.height * depth * _CHANNELS.get(kind, 1) > 8 * _MOST_INFLATED * len(content):
        raise InputError(f"truncated: {len(content)} bytes for {image.height} x {image.width} pixels")


def _depth_and_kind(content: bytes) -> tuple[int, int]:
    """Bits per channel and colour type of a PNG, from its header: Pillow narrows 16 bits, and widens 4, unasked."""
    return content[24], content[25]


@functools.cache
def fast_decoder() -> Callable[[bytes, tuple[int, int], str], np.ndarray] | None:
    """The PNG decoder of kornia-rs, about four times as fast as Pillow's; None where it is not installed."""
    try:
        from kornia_rs.io import decode_image_png_u8
    except ImportError:
        return None
    return decode_image_png_u8


def _samples(content: bytes, image: Image.Image, layout: str) -> np.ndarray:
    """The pixels of `content`, uint8 (H, W, 3) for layout "rgb", (H, W, 1) or (H, W) for "mono".

    Raises what Pillow raises. Pixels carry two checksums, and what is damaged after it was written fails both: the fast
    decoder looks at the CRC-32 of the PNG chunks, Pillow at the Adler-32 of the zlib stream inside them. So the one
    file that passes here and not there is that of a writer which got its own Adler-32 wrong.
    """
    decode = fast_decoder()
    if decode is not None:
        # What it refuses is for Pillow to decide on, and to name: it reads more, and its words are known.
        with contextlib.suppress(Exception):
            return decode(content, (image.height, image.width), layout)
    return np.asarray(image)


def decoded_photograph(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB; InputError for anything but an 8-bit RGB PNG."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (depth, kind) != (8, _PNG_RGB) or image.mode != "RGB":
            raise InputError(f"mode {image.mode}, {depth} bit; a photograph has to be RGB, 8 bit")
        return _samples(content, image, "rgb")


def decoded_label_ids(content: bytes) -> np.ndarray:
    """uint8 (H, W) label ids; InputError for anything but 8-bit greyscale or palette indices."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (kind != _PNG_PALETTE and (depth, kind) != (8, _PNG_GREYSCALE)) or image.mode not in ("L", "P"):
            raise InputError(f"mode {image.mode}, {depth} bit; labels have to be 8-bit greyscale or palette indices")
        return _samples(content, image, "mono").reshape(image.height, image.width)
