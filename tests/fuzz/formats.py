"""Damage that reaches the decoder: lengths, checksums and containers around it are right again afterwards."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import random
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence

from mutations import EXTREMES, Mutation, damaged, damaged_value

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_INFLATED = 2**20  # bytes of a PNG's stream that are damaged after inflating them
ZIP_RECORDS = re.compile(rb"PK(?:\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07)")
ZIP_NAMES = ("", "/", "/x", "../x", "a/../../x", "a\\..\\x", "C:\\x", "\x00", "é", "x" * 300, "a//b.png", "./a", "a/")

# Chunks besides those that every PNG has: colours, texts (one inflates to 20 MB), animation, and one that nobody knows.
FOREIGN_CHUNKS = (
    (b"tRNS", bytes(6)),
    (b"tRNS", bytes(300)),
    (b"gAMA", struct.pack(">I", 0)),
    (b"gAMA", b""),
    (b"iCCP", b"x\0\0" + zlib.compress(bytes(20_000_000), 9)),
    (b"zTXt", b"x\0\0" + zlib.compress(bytes(20_000_000), 9)),
    (b"iTXt", b"x\0\1\0\0\0" + zlib.compress(bytes(5000))),
    (b"acTL", struct.pack(">II", 2**31, 0)),
    (b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31, 2**31, 0, 0, 0, 0, 0, 0)),
    (b"fdAT", bytes(12)),
    (b"eXIf", b"II*\0" + bytes(40)),
    (b"PLTE", bytes(range(9))),
    (b"PLTE", bytes(1000)),
    (b"IHDR", struct.pack(">IIBBBBB", 9, 9, 16, 0, 0, 0, 0)),
    (b"IEND", b""),
    (b"ABCD", bytes(10)),
)
HEADER_FIELDS = ((0, ">I"), (4, ">I"), (8, ">B"), (9, ">B"), (10, ">B"), (11, ">B"), (12, ">B"))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return kind and data of each whole chunk."""
    chunks, place = [], len(SIGNATURE)
    while place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def damaged_png(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a PNG whose chunks are damaged inside or put together otherwise; lengths and CRCs are right."""
    chunks = png_chunks(content)
    for _ in range(rng.choice((1, 1, 2))):
        place, how = rng.randrange(len(chunks)), rng.choice(("header", "data", "pixels", "order", "foreign", "splice"))
        if how == "header":
            chunks[0] = (chunks[0][0], _with_odd_field(rng, chunks[0][1]))
        elif how == "data":
            chunks[place] = (chunks[place][0], damaged(rng, chunks[place][1]))
        elif how == "pixels":
            chunks = _with_damaged_pixels(rng, chunks)
        elif how == "order":
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[place] if rng.random() < 0.3 else chunks.pop(place))
        elif how == "foreign":
            chunks.insert(place, rng.choice(FOREIGN_CHUNKS))
        else:
            other = png_chunks(rng.choice(others or [content]))
            chunks[place] = rng.choice(other)
    return SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)


def _with_odd_field(rng: random.Random, header: bytes) -> bytes:
    place, form = rng.choice(HEADER_FIELDS)
    if len(header) < 13:
        return header
    changed, most = bytearray(header), 256 ** struct.calcsize(form)
    (found,) = struct.unpack_from(form, header, place)
    number = rng.choice((*EXTREMES, found + 1, found - 1, 2 * found, 3, 4, 16, 9000))
    struct.pack_into(form, changed, place, number % most)
    return bytes(changed)


def _with_damaged_pixels(rng: random.Random, chunks: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Take the zlib stream out, damage it before it is deflated again, and put it back as several chunks."""
    places = [place for place, (kind, _) in enumerate(chunks) if kind == b"IDAT"]
    stream = b"".join(chunks[place][1] for place in places)
    try:
        rows = zlib.decompressobj().decompress(stream, MOST_INFLATED)
    except zlib.error:
        return chunks
    rows = rows * rng.choice((0, 2, 1000)) if rng.random() < 0.2 else damaged(rng, rows)
    stream, parts = zlib.compress(rows, rng.choice((0, 1, 9))), rng.randint(1, 3)
    size = -(-len(stream) // parts)
    first = places[0] if places else 0
    kept = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return [*kept[:first], *((b"IDAT", stream[i * size :][:size]) for i in range(parts)), *kept[first:]]


def damaged_zip_fields(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Set sizes, offsets, flags, methods or counts of the records of a zip to extremes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        record = rng.choice([match.start() for match in ZIP_RECORDS.finditer(content)])
        place, size = record + rng.randrange(4, 46), rng.choice((1, 2, 4))
        if place + size <= len(changed):
            changed[place : place + size] = (rng.choice(EXTREMES) % 256**size).to_bytes(size, "little")
    return bytes(changed)


def in_zip(damage: Mutation) -> Mutation:
    """Do `damage` to a member of a zip, or change its name, and pack it again as it should be."""

    def damaged_member(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
        place = rng.randrange(len(members))
        name, data = members[place]
        how = rng.choice(("damage", "damage", "name", "twice", "drop", "bomb"))
        if how == "damage":
            members[place] = (name, damage(rng, data, ()))
        elif how == "name":
            members[place] = (rng.choice((*ZIP_NAMES, members[-1][0], f"{name}x")), data)
        elif how == "twice":
            members.append((name, damaged(rng, data)))
        elif how == "drop":
            del members[place]
        else:
            members[place] = (name, data + bytes(rng.choice((10**4, 10**7))))
        stream = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", rng.choice((0, 8))) as archive:
            warnings.simplefilter("ignore")  # a name that occurs twice
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data)
        return stream.getvalue()

    return damaged_member


ODD_SHAPES = (
    *((), (0,), (-1,), (2**62,), (10**30,), (0, 10**30), (65536,) * 4, (3, -3), (True,), (1.0,), [3], 3, None),
    *((None,), ((),), (1,) * 64, (1,) * 65, (9999999999,), (4294967296, 4294967296)),
)
ODD_TYPES = (
    *("|u1", "<f2", ">f8", "|O", "|V0", "|V9999999999", "|S0", "<U1", "<M8[ns]", "<m8", "|b1", "x", "", "<i3", "2u1"),
    *("u1,u1", "(2,)u1", "(99999,99999)f8", [], [("a", "|O")], [("a", "<f4", (9, 9))], [("a",)], ("|u1",), None, 3, {}),
)
ODD_HEADERS = (
    *(b"(" * 3000, b"[" * 90, b"{[]: 1}", b"{'a': 'b", b"\xff\xfe", b"lambda: 0", b"{**1}", b"'''", b"1" * 9999),
    *(b"", b"{", b"{}", b"{1: 2, None: 3}", b"{'descr': 1, 2: 3}", b"3", b"\0", b"if", b"\n  x\n y"),
)


def damaged_npy(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Give the header of a .npy file an odd shape, type or key, or another text; its length is right."""
    (length,) = struct.unpack_from("<H", content, 8)
    header = ast.literal_eval(content[10 : 10 + length].decode())
    how = rng.choice(("shape", "shape", "type", "order", "keys", "text"))
    if how == "shape":
        header["shape"] = rng.choice((*ODD_SHAPES, tuple(rng.sample(range(50), rng.randrange(6)))))
    elif how == "type":
        header["descr"] = rng.choice(ODD_TYPES)
    elif how == "order":
        header["fortran_order"] = rng.choice((True, 1, None, "no"))
    elif how == "keys":
        header[rng.choice((1, None, "x", (), b"shape"))] = header.pop(rng.choice(list(header)))
    text = repr(header).encode()
    if how == "text":
        text = rng.choice((*ODD_HEADERS, damaged(rng, text)))
    version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    size = struct.pack("<H" if version == (1, 0) else "<I", min(len(text), 65535))
    return content[:6] + bytes(version) + size + text + content[10 + length :]


def damaged_safetensors(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Make the header of a .safetensors file, or the facts in it, another JSON value; its length is right."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    text = damaged_safetensors_header(rng, json.dumps(header).encode(), ())
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def damaged_safetensors_header(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return what `damaged_safetensors` does, of the header alone."""
    header = json.loads(content)
    if rng.random() < 0.5:
        return json.dumps(damaged_value(rng, header)).encode()
    facts = header["__metadata__"]["segdistill"]
    kinds = (json.dumps(damaged_value(rng, json.loads(facts))), damaged(rng, facts.encode()).decode("utf-8", "replace"))
    header["__metadata__"]["segdistill"] = rng.choice((*kinds, "[" * 9000))
    return json.dumps(header).encode()


def damaged_onnx(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return an ONNX model in which fields hold other values, or repeated ones occur twice or not at all."""
    import onnx

    model = onnx.load_from_string(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        message, field = rng.choice(list(_fields(model)))
        with contextlib.suppress(ValueError):  # a number outside of its enumeration
            _damage_field(rng, message, field)
    return model.SerializeToString()


def _damage_field(rng: random.Random, message, field) -> None:
    value = getattr(message, field.name)
    place = rng.randrange(len(value)) if hasattr(value, "append") else None
    if place is not None and rng.random() < 0.3:
        del value[place:]
    elif place is not None and field.message_type is not None:
        value.append(value[place])
    elif place is not None:
        value[place] = _odd(rng, value[place])
    elif field.message_type is None:
        setattr(message, field.name, _odd(rng, value))
    else:
        message.ClearField(field.name)


def _fields(message):
    """Yield (message, field) of everything that is set, at any depth."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for inner in value if hasattr(value, "append") else [value]:
                yield from _fields(inner)


ODD_NAMES = ("", "x", "image", "logits", "Cast", "Loop", "If", "../../x", "x" * 999, "[1]", "{}")


def _odd(rng: random.Random, value: object) -> object:
    """Return a value of the type of `value`: numbers within 31 bits, which every field of a model takes."""
    if isinstance(value, int):
        return rng.choice((0, 1, 2, 7, 10, 16, value + 1 if value < 2**30 else 3, 2**20, 2**31 - 1, -1))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    if isinstance(value, bytes):
        return damaged(rng, value)
    return rng.choice((*ODD_NAMES, f"{value}x"))
