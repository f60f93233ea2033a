"""What a user did that the pipeline cannot work with, told in one message: no traceback, no password."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """Bad input: the message names the file or params path, what was found and what is allowed."""


def raise_all(faults: Iterable[str], heading: str, shown: int = 30) -> None:
    """Raise one UserError that lists all `faults`, at most `shown` of them in full; do nothing without faults."""
    faults = list(faults)
    if not faults:
        return
    lines = [f"  - {fault}" for fault in faults[:shown]]
    if len(faults) > shown:
        lines.append(f"  - ... and {len(faults) - shown} more")
    raise UserError("\n".join([f"{heading} ({len(faults)}):", *lines]))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn what a user or the machine did into one message on stderr and exit code 1; let our own faults trace back."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        remedy = "; free some space and run it again: what was finished is kept" if error.errno in NO_SPACE else ""
        message = f"{name}{error.strerror or error}{remedy}"
    else:
        return
    lines = map(printable, without_passwords(message).split("\n"))
    print("error: " + "\n".join(lines), file=sys.stderr)
    sys.exit(1)


def printable(text: str) -> str:
    """`text` in one line that does nothing to a terminal: line breaks and control characters are spelt out."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def without_passwords(text: str) -> str:
    """`text` with user and password cut out of every URI, and the query of a URI that is all of it."""
    text = text.partition("?")[0] if re.match(r"\w[\w+.-]*://\S*$", text) else text
    return re.sub(r"(\w[\w+.-]*://)\S*@", r"\1", text)


def passwords_in(uri: str) -> list[str]:
    """The passwords in `uri`, before its host or in its query, however badly they are quoted there."""
    rest = re.sub(r"^[\w+.-]+://(?!/)", "", uri)
    if rest == uri:  # a file or a folder
        return []
    queried = re.findall(r"[?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=([^&]+)", rest, re.IGNORECASE)
    return [found for found in (rest.rpartition("@")[0].partition(":")[2], *queried) if found]
