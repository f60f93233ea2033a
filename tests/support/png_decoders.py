"""The two decoders of PNGs: kornia-rs where it is installed, and Pillow where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from segdistill.prepare import images as png_file

DECODERS = ("kornia-rs", "Pillow")


@contextmanager
def decoding_with(name: str) -> Iterator[str]:
    """Let PNGs be decoded by `name`; skips the test where it is not installed."""
    if name == "kornia-rs":
        pytest.importorskip("kornia_rs")
    with pytest.MonkeyPatch.context() as patch:
        if name == "Pillow":
            patch.setattr(png_file, "fast_decoder", lambda: None)
        yield name
