"""Files made to do harm, and PNGs put together by hand."""

from __future__ import annotations

import functools
import struct
import zlib
from pathlib import Path

GREYSCALE, RGB, PALETTE = 0, 2, 3
MAGIC = b"\x89PNG\r\n\x1a\n"


class RunsCode:
    """Unpickling it creates the file `target`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width_px: int, height_px: int, kind: int, interlaced: bool = False) -> bytes:
    """Return the chunk that a PNG of 8 bits begins with."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width_px, height_px, 8, kind, 0, 0, interlaced))


@functools.cache
def zeros_compressed(count: int) -> bytes:
    """Return `count` zeros as a zlib stream, made without holding them."""
    compressor, piece = zlib.compressobj(9), bytes(2**20)
    parts = [compressor.compress(piece) for _ in range(count // 2**20)]
    return b"".join([*parts, compressor.compress(bytes(count % 2**20)), compressor.flush()])


def png_of(stream: bytes, width_px: int, height_px: int, kind: int, *extra: bytes) -> bytes:
    """Return a PNG that states a size, with `stream` as its pixels, of any inflated size, and `extra` chunks before."""
    return b"".join((MAGIC, header(width_px, height_px, kind), *extra, chunk(b"IDAT", stream), chunk(b"IEND", b"")))
