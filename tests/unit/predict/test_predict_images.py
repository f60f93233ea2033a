"""Image files are read upright, as RGB; files that cannot be read are named."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.predict.images import pixels, read_image

FRAME = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def saved(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


def test_rgb_png_is_read_to_the_pixel(tmp_path):
    assert np.array_equal(read_image(saved(tmp_path / "a.png", Image.fromarray(FRAME))), FRAME)


def test_greyscale_becomes_three_equal_channels(tmp_path):
    found = np.asarray(read_image(saved(tmp_path / "a.png", Image.fromarray(FRAME[..., 0]))))
    assert np.array_equal(found, np.repeat(FRAME[..., :1], 3, axis=2))


def test_transparency_is_dropped(tmp_path):
    rgba = np.concatenate([FRAME, np.full((5, 7, 1), 3, np.uint8)], axis=2)
    assert np.array_equal(read_image(saved(tmp_path / "a.png", Image.fromarray(rgba))), FRAME)


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([9, 8, 7, 255, 0, 1, 4, 5, 6])
    path = saved(tmp_path / "a.png", image, transparency=b"\0\xff\x80")
    assert np.asarray(read_image(path)).tolist() == [[[9, 8, 7], [255, 0, 1], [4, 5, 6]]]


# What each EXIF orientation asks a viewer to do with the stored pixels.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_rotation_is_applied(orientation, suffix, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.repeat(np.repeat(FRAME, 8, 0), 8, 1))
    path = saved(tmp_path / f"a{suffix}", stored, exif=exif)
    plain = saved(tmp_path / f"plain{suffix}", stored)
    assert np.array_equal(read_image(path), UPRIGHT[orientation](np.asarray(Image.open(plain))))


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".tiff", ".webp"])
def test_lossless_formats_are_read_to_the_pixel(suffix, tmp_path):
    options = {"lossless": True} if suffix == ".webp" else {}
    assert np.array_equal(read_image(saved(tmp_path / f"a{suffix}", Image.fromarray(FRAME), **options)), FRAME)


def test_first_image_of_several_is_read(tmp_path):
    other = Image.fromarray(255 - FRAME)
    path = saved(tmp_path / "a.tif", Image.fromarray(FRAME), save_all=True, append_images=[other])
    assert np.array_equal(read_image(path), FRAME)


def test_first_image_of_a_phones_jpeg_is_read(tmp_path):
    """Phones append a depth map or a second view: Pillow calls such a file MPO."""
    stored = Image.fromarray(np.repeat(np.repeat(FRAME, 8, 0), 8, 1))
    path, plain = tmp_path / "phone.jpg", saved(tmp_path / "plain.jpg", stored)
    stored.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert Image.open(path).format == "MPO"
    assert np.array_equal(read_image(path), np.asarray(Image.open(plain)))


def test_image_with_a_broken_exif_rational_is_turned_upright(tmp_path):
    """The resolution is -1 / 0 as an unsigned rational: some cameras write that, and viewers ignore it."""
    entries = struct.pack("<HHII", 0x112, 3, 1, 6) + struct.pack("<HHII", 0x11A, 10, 1, 38)
    exif = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4) + struct.pack("<ii", -1, 0)
    stored = Image.fromarray(np.repeat(np.repeat(FRAME, 8, 0), 8, 1))
    path, plain = saved(tmp_path / "a.jpg", stored, exif=b"Exif\0\0" + exif), saved(tmp_path / "plain.jpg", stored)
    assert np.array_equal(read_image(path), np.rot90(np.asarray(Image.open(plain)), -1))


@pytest.mark.parametrize("exif", [b"", b"II*\0\x08", b"no EXIF data", b"II*\0" + bytes([255] * 4)])
def test_exif_that_cannot_be_read_is_ignored(exif, tmp_path):
    stored = Image.fromarray(FRAME)
    path, plain = saved(tmp_path / "a.jpg", stored, exif=b"Exif\0\0" + exif), saved(tmp_path / "plain.jpg", stored)
    assert np.array_equal(read_image(path), np.asarray(Image.open(plain)))


def test_jpeg_of_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
    assert np.asarray(read_image(path))[0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_sixteen_bits_are_refused_by_name(tmp_path):
    path = saved(tmp_path / "deep.png", Image.fromarray(np.full((4, 4), 40000, np.uint16)))
    with pytest.raises(UserError, match=r"deep\.png: mode I;16"):
        read_image(path)


def png_header(width: int, height: int) -> bytes:
    """A PNG of that size with no pixels in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def cut_png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()[:2000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no readable PNG, JPEG, WebP, BMP or TIFF"),
        (b"text", "no readable PNG, JPEG, WebP, BMP or TIFF"),
        (cut_png(), "damaged"),
        (png_header(4, 4), "damaged"),
        (png_header(60000, 60000), "--tile"),
        (b"GIF89a" + bytes(99), "no readable PNG, JPEG, WebP, BMP or TIFF"),
    ],
    ids=["empty", "text", "cut", "hollow", "huge", "gif"],
)
def test_file_that_is_no_image_is_named(content, reason, tmp_path):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_image(tmp_path / "bad.png")
    assert str(error.value).startswith(f"{tmp_path / 'bad.png'}: ")
    assert reason in str(error.value)


@pytest.mark.parametrize("size", [(60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_impossible_size_in_a_header_is_refused(size, tmp_path):
    (tmp_path / "bad.png").write_bytes(png_header(*size))
    with pytest.raises(UserError, match=rf"bad\.png: truncated: \d+ bytes for {size[1]} x {size[0]} pixels"):
        read_image(tmp_path / "bad.png", any_size=True)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA"])
def test_images_of_one_colour_are_not_taken_for_truncated(mode, tmp_path):
    path = saved(tmp_path / "flat.png", Image.new(mode, (3000, 2000)), compress_level=9)
    assert read_image(path).size == (3000, 2000)


def test_a_folder_named_like_a_image_is_refused_by_name(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a\.png: Is a directory"):
        read_image(tmp_path / "a.png")


def test_a_pipe_named_like_a_image_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: a pipe, no file"):
        read_image(tmp_path / "a.png")


def test_pixel_limit_is_lifted_for_one_image_only(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    path = saved(tmp_path / "a.png", Image.fromarray(FRAME))
    with pytest.raises(UserError, match="more than 20 pixels"):
        read_image(path)
    assert np.array_equal(read_image(path, any_size=True), FRAME)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_part_is_read_by_rows_and_columns():
    assert np.array_equal(pixels(Image.fromarray(FRAME), slice(1, 4), slice(2, 7)), FRAME[1:4, 2:7])
