"""Print any text on any terminal."""

from __future__ import annotations

import codecs
import sys

_PLAIN = {"–": "-", "—": "-", "−": "-", "±": "+-", "×": "x", "·": ".", "…": "...", "→": "->", "≥": ">=", "≤": "<="}


def print_anywhere() -> None:
    """Let stdout and stderr replace what their encoding cannot write: not every terminal and log is UTF-8."""

    def replace(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeEncodeError):
            raise error
        return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end

    codecs.register_error("plain", replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not so where a test or a notebook captures it
            stream.reconfigure(errors="plain")
