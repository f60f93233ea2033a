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
from PIL import Image, ImageOps, UnidentifiedImageError

from segdistill.core.errors import UserError

# A PNG cannot sensibly outgrow its own pixels; this keeps a crafted archive from filling the memory.
MAX_FILE_BYTES = 3 * Image.MAX_IMAGE_PIXELS
_PNG_GREYSCALE, _PNG_RGB, _PNG_PALETTE = 0, 2, 3
_CHANNELS = {_PNG_RGB: 3, 4: 2, 6: 4}  # by colour type: with alpha, grey has two and RGB four
_MAX_INFLATED = 1032  # bytes that deflate, in which the pixels lie, makes of one


def opened_png(content: bytes) -> contextlib.AbstractContextManager[Image.Image]:
    """The still undecoded PNG in `content`; raises on anything that is no PNG, and on an absurd size."""
    return opened_image(content, ("PNG",))


@contextlib.contextmanager
def opened_image(content: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """The still undecoded image in `content`; raises on anything but these formats of Pillow, and on an absurd size."""
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"larger than the {MAX_FILE_BYTES} bytes that are read")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        except UnidentifiedImageError:
            raise UserError(f"no readable {' or '.join(formats)} ({len(content)} bytes)") from None
    with image:
        if image.format == "PNG":
            _check_header(content, image)
        yield image


def _check_header(content: bytes, image: Image.Image) -> None:
    """UserError where a PNG says of itself what cannot be."""
    # The standard wants one header, and it first; Pillow goes by the last one, wherever it is.
    if content[12:16] != b"IHDR" or struct.unpack(">II", content[16:24]) != image.size:
        raise UserError("no PNG of the standard: its first chunk is not its only header")
    depth, kind = _depth_and_kind(content)
    # Told before a decoder gets memory for pixels that cannot come.
    if image.width * image.height * depth * _CHANNELS.get(kind, 1) > 8 * _MAX_INFLATED * len(content):
        raise UserError(f"truncated: {len(content)} bytes for {image.height} x {image.width} pixels")


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
    """uint8 (H, W, 3) RGB; UserError for anything but an 8-bit RGB PNG."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (depth, kind) != (8, _PNG_RGB) or image.mode != "RGB":
            raise UserError(f"mode {image.mode}, {depth} bit; a photograph has to be RGB, 8 bit")
        return _samples(content, image, "rgb")


def decoded_label_ids(content: bytes) -> np.ndarray:
    """uint8 (H, W) label ids; UserError for anything but 8-bit greyscale or palette indices."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (kind != _PNG_PALETTE and (depth, kind) != (8, _PNG_GREYSCALE)) or image.mode not in ("L", "P"):
            raise UserError(f"mode {image.mode}, {depth} bit; labels have to be 8-bit greyscale or palette indices")
        return _samples(content, image, "mono").reshape(image.height, image.width)


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
    """uint8 (H, W, 3) RGB of a JPEG or PNG, without transparency; UserError for more than 8 bits per channel."""
    with opened_image(content, _FORMATS) as image:
        _check_depth(content, image)
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def decoded_label_colors(content: bytes) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a PNG in colours, or of a palette's; UserError for anything else."""
    with opened_png(content) as image:
        _check_depth(content, image)
        if image.mode not in ("P", "RGB", "RGBA"):
            raise UserError(f"mode {image.mode}; labels that are colors have to be RGB or have a palette")
        return np.asarray(image.convert("RGB"))


def _check_depth(content: bytes, image: Image.Image) -> None:
    depth = content[24] if image.format == "PNG" else 8  # of a channel, from the header: Pillow narrows 16 bits unasked
    if image.mode not in _EIGHT_BIT_MODES or depth > 8:
        raise UserError(f"mode {image.mode}, {max(depth, 8)} bit; allowed are 8 bits per channel")
