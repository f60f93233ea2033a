"""Damage to files, drawn from a generator: to any bytes, to texts, and to JSON values.

Every mutation is a function of (rng, content, others) that gives the damaged content; `others` are further valid files
of the same kind, to splice from.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]

# Numbers at which counts, sizes and signs turn over.
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 255, 256, 2**31, 2**63, 10**9, 10**18, 10**40, 0.5, -0.0, 1e308),
    *("", "0", "nan", "name", "../..", "a\nb", "\x00", "é", "\ud800", "x" * 5000),
    *([], {}, [[]], [0], [None], ["a", 1], {"": 0}, {"a": {"b": []}}, [1] * 100),
)
ODD_TEXTS = (
    *("", " ", "0", "-1", "1e400", "nan", "inf", "-", "1" * 5000, "null", "true", "~", "1,2", '"', "'", "\x00", "\r"),
    *("é", "\ufeff", "\u2028", "[", "]", "{", "}", ":", "- ", "*a", "&a", "!!int", "!!binary", "!!set", "<<", "0x1F"),
    *("2024-01-01", "#", "|", ">", "%", "@", "`", "\t", "1:2:3", "...", "---", "? ", '"\\ud800"', "[" * 2000),
)


def flip_bits(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Flip up to 8 bits."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 8) if damaged else 0):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def overwrite_run(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Overwrite a run of bytes with one value."""
    start, length = _slice(rng, content)
    return (
        content[:start]
        + bytes([rng.choice((0, 255, 0x7F, 0x80, rng.randrange(256)))]) * length
        + (content[start + length :])
    )


def write_extreme(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Overwrite 1, 2, 4 or 8 bytes with an extreme number, in either byte order."""
    size = rng.choice((1, 2, 4, 8))
    number = (rng.choice(EXTREMES) % 256**size).to_bytes(size, rng.choice(("little", "big")))
    start = rng.randrange(max(1, len(content) - size + 1))
    return content[:start] + number + content[start + size :]


def truncate(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Keep the beginning."""
    return content[: rng.randrange(len(content) + 1)]


def repeat_slice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Insert a slice of the content somewhere else, once or many times."""
    start, length = _slice(rng, content)
    place = rng.randrange(len(content) + 1)
    return content[:place] + content[start : start + length] * rng.choice((1, 1, 2, 50)) + content[place:]


def remove_slice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Cut a slice out."""
    start, length = _slice(rng, content)
    return content[:start] + content[start + length :]


def splice(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Join the beginning of the content and the end of another file."""
    other = rng.choice(others or [content])
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _slice(rng: random.Random, content: bytes) -> tuple[int, int]:
    """Start and length of a slice: most are short."""
    start = rng.randrange(len(content) + 1)
    return start, min(len(content) - start, rng.choice((1, 2, 4, 8, rng.randint(1, 64), rng.randint(1, 4096))))


OF_BYTES: tuple[Mutation, ...] = (
    *(flip_bits, overwrite_run, write_extreme, truncate),
    *(repeat_slice, remove_slice, splice),
)


def damaged(rng: random.Random, content: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Make up to 3 mutations of bytes, one after the other."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(OF_BYTES)(rng, content, others)
    return content


def damaged_text(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return UTF-8 text with words, numbers or signs replaced, repeated or removed."""
    text = content.decode("utf-8", "replace")
    for _ in range(rng.randint(1, 3)):
        tokens = list(re.finditer(r"[^\W_]+|[^\w\s]|\n", text))
        if not tokens:
            break
        token = rng.choice(tokens)
        word = rng.choice((rng.choice(ODD_TEXTS), rng.choice(tokens)[0], token[0] * 2, ""))
        text = text[: token.start()] + word + text[token.end() :]
    return text.encode("utf-8", "surrogatepass")


def damaged_json(rng: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return JSON with values replaced, removed, moved or renamed."""
    return json.dumps(damaged_value(rng, json.loads(content))).encode()


def damaged_value(rng: random.Random, value: object) -> object:
    """Return a JSON value with up to 3 places changed; the value given may be changed as well."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places or rng.random() < 0.02:
            value = rng.choice(ODD_VALUES)
            continue
        parent, key = rng.choice(places)
        _change(rng, parent, key, places)
    return value


def _places(value: object):
    """Yield (container, key) of every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def _change(rng: random.Random, parent: dict | list, key: object, places: list) -> None:
    how = rng.choice(("odd", "odd", "number", "remove", "rename", "copy", "wrap"))
    if how == "odd":
        parent[key] = json.loads(json.dumps(rng.choice(ODD_VALUES)))
    elif how == "number" and isinstance(parent[key], int):
        parent[key] = rng.choice((parent[key] + 1, parent[key] - 1, -parent[key], float(parent[key])))
    elif how == "rename" and isinstance(parent, dict):
        parent[rng.choice(("", "x", f"{key}x", str(key)[:-1]))] = parent.pop(key)
    elif how == "copy":
        other, place = rng.choice(places)
        parent[key] = json.loads(json.dumps(other[place]))
    elif how == "wrap":
        parent[key] = rng.choice(([parent[key]], {"x": parent[key]}, [parent[key], parent[key]]))
    else:
        del parent[key]
