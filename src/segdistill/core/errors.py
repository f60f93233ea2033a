"""Bad input as one message: no traceback, no password."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from segdistill.core.log import logger

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """Bad input: the message names the file or params path, what was found and what is allowed."""


def raise_all(errors: Iterable[str], heading: str, shown: int = 30) -> None:
    """Raise one UserError that lists `errors`, at most `shown` of them in full; do nothing when there are none."""
    errors = list(errors)
    if not errors:
        return
    lines = [f"  - {error}" for error in errors[:shown]]
    if len(errors) > shown:
        lines.append(f"  - ... and {len(errors) - shown} more")
    raise UserError("\n".join([f"{heading} ({len(errors)}):", *lines]))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a UserError or OSError into one message on stderr and exit code 1; leave bugs their traceback."""
    try:
        yield
    except BrokenPipeError:  # `head` has read enough: no error, and Python's flush at exit must not make it one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:
        logger.error(message_to_user(error))
        sys.exit(1)


def message_to_user(error: Exception) -> str | None:
    """Return what users read of a UserError or OSError, printable and without passwords; None of other errors."""
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        remedy = "; free some space and run it again: what was finished is kept" if error.errno in NO_SPACE else ""
        message = f"{name}{error.strerror or error}{remedy}"
    elif isinstance(error, UserError):
        message = str(error)
    else:
        return None
    return "\n".join(map(printable, without_passwords(message).split("\n")))


def printable(text: str) -> str:
    """Return `text` as one line without effect on a terminal: line breaks and control characters are spelt out."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def without_passwords(text: str) -> str:
    """Return `text` without user and password of any URI, and without the query where all of it is a URI."""
    text = text.partition("?")[0] if re.match(r"\w[\w+.-]*://\S*$", text) else text
    return re.sub(r"(\w[\w+.-]*://)\S*@", r"\1", text)


def passwords_in(uri: str) -> list[str]:
    """Return the passwords in `uri`, before its host or in its query, also badly quoted ones."""
    rest = re.sub(r"^[\w+.-]+://(?!/)", "", uri)
    if rest == uri:  # a file or a folder
        return []
    queried = re.findall(r"[?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=([^&]+)", rest, re.IGNORECASE)
    return [found for found in (rest.rpartition("@")[0].partition(":")[2], *queried) if found]
