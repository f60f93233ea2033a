"""Images and label images as arrays, from bytes that nobody has checked: the one place that opens them.

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

from segdistill.core.errors import UserError

# A PNG is not larger than its pixels; this keeps a crafted archive from filling the memory.
MAX_FILE_BYTES = 3 * (Image.MAX_IMAGE_PIXELS or 0)
_PNG_GREYSCALE, _PNG_RGB, _PNG_PALETTE = 0, 2, 3
_CHANNELS = {_PNG_RGB: 3, 4: 2, 6: 4}  # by colour type: with alpha, grey has two and RGB four
MAX_INFLATED = 1032  # bytes that deflate, which compresses the pixels, makes of one


def opened_png(content: bytes) -> contextlib.AbstractContextManager[Image.Image]:
    """Yield the undecoded PNG in `content`; raise where it is no PNG or has an absurd size."""
    return opened_image(content, ("PNG",))


@contextlib.contextmanager
def opened_image(content: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Yield the undecoded image in `content`; raise where it has none of these formats of Pillow, or an absurd size."""
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"larger than the {MAX_FILE_BYTES} bytes that are read")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of EXIF data that are cut short, which nothing here needs
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        except UnidentifiedImageError:
            raise UserError(f"no readable {' or '.join(formats)} ({len(content)} bytes)") from None
    with image:
        if image.format == "PNG":
            # The standard has one header, and it first; Pillow uses the last one, wherever it is.
            if content[12:16] != b"IHDR" or struct.unpack(">II", content[16:24]) != image.size:
                raise UserError("no PNG of the standard: its first chunk is not its only header")
            depth, kind = _depth_and_kind(content)
            # Checked before a decoder allocates memory for pixels that are not in the file.
            if image.width * image.height * depth * _CHANNELS.get(kind, 1) > 8 * MAX_INFLATED * len(content):
                raise UserError(f"truncated: {len(content)} bytes for {image.height} x {image.width} pixels")
        yield image


def _depth_and_kind(content: bytes) -> tuple[int, int]:
    """Return bits per channel and colour type from the header of a PNG; Pillow narrows 16 bits and widens 4."""
    return content[24], content[25]


@functools.cache
def fast_decoder() -> Callable[[bytes, tuple[int, int], str], np.ndarray] | None:
    """Return the PNG decoder of kornia-rs, about four times as fast as Pillow's; None where it is not installed."""
    try:
        from kornia_rs.io import decode_image_png_u8
    except ImportError:
        return None
    return decode_image_png_u8


def _samples(content: bytes, image: Image.Image, layout: str) -> np.ndarray:
    """Return the pixels of `content`, uint8 (H, W, 3) for layout "rgb", (H, W, 1) or (H, W) for "mono".

    Raises what Pillow raises. Pixels have two checksums, and a file that was damaged after writing fails both: the fast
    decoder checks the CRC-32 of the PNG chunks, Pillow the Adler-32 of the zlib stream inside them. Only a file whose
    writer got its own Adler-32 wrong is read here and not by Pillow.
    """
    decode = fast_decoder()
    if decode is not None:
        # Pillow reads more files, and names the error of those that it refuses too.
        with contextlib.suppress(Exception):
            return decode(content, (image.height, image.width), layout)
    return np.asarray(image)


def decode_photograph(content: bytes) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB; raise a UserError for anything but an 8-bit RGB PNG."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (depth, kind) != (8, _PNG_RGB) or image.mode != "RGB":
            raise UserError(f"mode {image.mode}, {depth} bit; a photograph has to be RGB, 8 bit")
        return _samples(content, image, "rgb")


def decode_label_ids(content: bytes) -> np.ndarray:
    """Return uint8 (H, W) label ids; raise a UserError for anything but 8-bit greyscale or palette indices."""
    with opened_png(content) as image:
        depth, kind = _depth_and_kind(content)
        if (kind != _PNG_PALETTE and (depth, kind) != (8, _PNG_GREYSCALE)) or image.mode not in ("L", "P"):
            raise UserError(f"mode {image.mode}, {depth} bit; labels have to be 8-bit greyscale or palette indices")
        return _samples(content, image, "mono").reshape(image.height, image.width)


SUFFIXES = (".jpg", ".jpeg", ".png")
_FORMATS = ("JPEG", "PNG")
# What Pillow opens with 8 bits per channel; of more bits it drops the lower half without an error.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
_ORIENTATION = 0x0112  # the EXIF tag
_SWAPS_SIDES = (5, 6, 7, 8)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(image: Image.Image) -> int:
    """Return how an image is to be turned, 1 to 8 as in EXIF; 1 where its EXIF data are absent or unreadable.

    ImageOps.exif_transpose also rewrites the EXIF data, and fails on any broken value in them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF data that are cut short
        try:
            found = image.getexif().get(_ORIENTATION)
            return int(found) if found in _TURNS else 1
        except Exception:  # Pillow raises many types
            return 1


def upright(image: Image.Image) -> Image.Image:
    """Return `image` turned as its EXIF data say."""
    orientation = exif_orientation(image)
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def image_size_px(content: bytes) -> tuple[int, int]:
    """Return (H, W) of a JPEG or PNG as it is stored, without decoding it."""
    with opened_image(content, _FORMATS) as image:
        return image.height, image.width


def decode_image(content: bytes, label_size_px: tuple[int, ...] | None, exif: str | None) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB of a JPEG or PNG, without transparency.

    Args:
        label_size_px: (H, W) of its label, None where that is unreadable.
        exif: "apply" turns the image as its EXIF orientation says, "ignore" keeps the stored pixels. With None the size
            of the label decides: labels of some tools are drawn on the stored pixels, those of others on turned ones.

    Raises:
        UserError: more than 8 bits per channel, or with None an orientation that the size of the label does not decide.
    """
    with opened_image(content, _FORMATS) as image:
        _check_depth(content, image)
        is_turned = exif != "ignore" and exif_orientation(image) != 1
        if is_turned and exif is None and label_size_px is not None:
            orientation = exif_orientation(image)
            if orientation not in _SWAPS_SIDES or image.width == image.height:
                raise UserError(
                    f"EXIF orientation {orientation}, and its label may be drawn on the stored or the turned pixels; "
                    "write exif_orientation: apply (turn the images) or ignore into classes.yaml"
                )
            is_turned = label_size_px == (image.width, image.height)
        return np.asarray((upright(image) if is_turned else image).convert("RGB"))


def decode_label_colors(content: bytes) -> np.ndarray:
    """Return uint8 (H, W, 3) RGB of a PNG in colours or with a palette; raise a UserError for anything else."""
    with opened_png(content) as image:
        _check_depth(content, image)
        if image.mode not in ("P", "RGB", "RGBA"):
            raise UserError(f"mode {image.mode}; labels that are colors have to be RGB or have a palette")
        return np.asarray(image.convert("RGB"))


def png_size_px(content: bytes) -> tuple[int, int]:
    """Return (H, W) of a PNG without decoding it."""
    with opened_png(content) as image:
        return image.height, image.width


def _check_depth(content: bytes, image: Image.Image) -> None:
    depth = content[24] if image.format == "PNG" else 8  # bits of a channel, from the header: Pillow narrows 16 bits
    if image.mode not in _EIGHT_BIT_MODES or depth > 8:
        raise UserError(f"mode {image.mode}, {max(depth, 8)} bit; allowed are 8 bits per channel")
