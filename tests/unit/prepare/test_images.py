"""PNGs written here by hand, as the standard says, read by both decoders."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.prepare import images as png_file
from segdistill.prepare.images import decode_label_ids, decode_photograph
from segdistill.prepare.run import prepare
from support.city_on_disk import write_city
from support.hostile_files import GREYSCALE, MAGIC, PALETTE, RGB, chunk, header

# First column, first row, steps between columns and rows of the seven passes of an interlaced PNG.
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def filtered(pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """Rows of uint8 (H, W) or (H, W, 3), each behind one of the five filters of the standard, drawn by `rng`."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, width, -1).astype(int)
    left, up, corner = (np.zeros_like(rows) for _ in range(3))
    left[:, 1:], up[1:], corner[1:, 1:] = rows[:, :-1], rows[:-1], rows[:-1, :-1]
    to_left, to_up, to_corner = (abs(left + up - corner - near) for near in (left, up, corner))
    nearest = np.where(to_up <= to_corner, up, corner)
    paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)
    predicted = (np.zeros_like(rows), left, up, (left + up) // 2, paeth)
    kinds = rng.integers(0, 5, height)
    residues = [((rows[y] - predicted[kind][y]) % 256).astype(np.uint8) for y, kind in enumerate(kinds)]
    return b"".join(bytes([kind]) + residue.tobytes() for kind, residue in zip(kinds, residues, strict=True))


def png(pixels: np.ndarray, kind: int, interlaced: bool = False, seed: int = 0) -> bytes:
    """The PNG of uint8 (H, W) or (H, W, 3), its pixels in two IDAT chunks."""
    rng = np.random.default_rng(seed)
    passes = [pixels[top::down, first::across] for first, top, across, down in ADAM7] if interlaced else [pixels]
    stream = zlib.compress(b"".join(filtered(part, rng) for part in passes if part.size))
    height, width = pixels.shape[:2]
    return b"".join(
        (
            MAGIC,
            header(width, height, kind, interlaced),
            chunk(b"PLTE", bytes(range(102))) if kind == PALETTE else b"",
            chunk(b"IDAT", stream[:40]),
            chunk(b"IDAT", stream[40:]),
            chunk(b"IEND", b""),
        )
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size_px", [(1, 1), (5, 3), (64, 37)])
def test_every_filter_and_layout_is_decoded(decoder, size_px, interlaced):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*size_px, 3), np.uint8)
        label_ids = rng.integers(0, 34, size_px, np.uint8)
        np.testing.assert_array_equal(decode_photograph(png(image, RGB, interlaced, seed)), image)
        for kind in (GREYSCALE, PALETTE):
            decoded = decode_label_ids(png(label_ids, kind, interlaced, seed))
            assert decoded.dtype == np.uint8
            np.testing.assert_array_equal(decoded, label_ids)


def test_damage_is_refused(decoder):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (16, 16, 3), np.uint8)
    whole = png(image, RGB)
    with pytest.raises(OSError, match="truncated"):
        decode_photograph(whole[: len(whole) // 2])
    for place in rng.integers(110, len(whole) - 24, 20):  # in the pixels of the second IDAT chunk
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(Exception, match="broken|truncated"):
            decode_photograph(bytes(damaged))


def test_other_layouts_are_refused(decoder):
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    with pytest.raises(UserError, match="mode L, 8 bit; a photograph has to be RGB"):
        decode_photograph(png(grey, GREYSCALE))
    with pytest.raises(UserError, match="mode RGB, 8 bit; labels have to be"):
        decode_label_ids(png(np.zeros((6, 6, 3), np.uint8), RGB))


def test_more_pixels_than_a_file_can_hold_are_refused_before_decoding(decoder, monkeypatch):
    monkeypatch.setattr(png_file, "_samples", None)  # not called
    whole = png(np.zeros((6, 6, 3), np.uint8), RGB)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, RGB, 0, 0, 0))
    with pytest.raises(UserError, match="truncated: .* bytes for 9000 x 9000 pixels"):
        decode_photograph(whole[:8] + header + whole[33:])


def test_emptiest_large_images_are_read(decoder):
    image = np.zeros((2000, 2000, 3), np.uint8)
    whole = png_of(image)
    assert len(whole) < image.nbytes / 900
    assert not decode_photograph(whole).any()


def png_of(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", compress_level=9)
    return stream.getvalue()


def test_a_second_header_or_one_that_is_not_first_is_refused(decoder):
    grey = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image, labels = png(np.repeat(grey[..., None], 3, 2), RGB), png(grey, GREYSCALE)
    header = slice(8, 33)
    for added in (labels[header], png(grey[:3], RGB)[header]):
        with pytest.raises(UserError, match="mode L, 8 bit; a photograph has to be RGB|not its only header"):
            decode_photograph(image[:33] + added + image[33:])
    with pytest.raises(UserError, match="mode RGB, 8 bit; labels have to be"):
        decode_label_ids(labels[:33] + image[header] + labels[33:])
    with pytest.raises(UserError, match="its first chunk is not its only header"):
        decode_photograph(image[:8] + chunk(b"tEXt", b"a\0b") + image[8:])


def test_the_fast_decoder_is_found_where_it_is_installed():
    pytest.importorskip("kornia_rs")
    assert png_file.fast_decoder() is not None


def test_prepared_bytes_do_not_depend_on_the_decoder(tmp_path: Path, monkeypatch):
    pytest.importorskip("kornia_rs")
    write_city(tmp_path / "city", ("aachen_000000_000019", "bochum_000000_000313"), ("ulm_000000_000019",))
    data = SimpleNamespace(
        source="cityscapes", root=str(tmp_path / "city"), size_px=None, holdout_fraction=0.5, unlabelled=None
    )
    data.unseen_groups, data.holdout_by = (), "groups"
    prepare(data, 0, tmp_path / "fast", workers=1)
    monkeypatch.setattr(png_file, "fast_decoder", lambda: None)
    prepare(data, 0, tmp_path / "slow", workers=1)
    written = [path.relative_to(tmp_path / "fast") for path in (tmp_path / "fast").rglob("*.*")]
    assert len(written) == 7
    for path in written:
        assert (tmp_path / "fast" / path).read_bytes() == (tmp_path / "slow" / path).read_bytes()
