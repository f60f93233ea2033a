"""What a user did that the pipeline cannot work with, told in one message and without a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """Bad input: the message names the file or params path, what was found and what is allowed."""


def raise_together(faults: Iterable[str], heading: str, shown: int = 30) -> None:
    """Raise one InputError that lists all `faults`, at most `shown` of them in full; do nothing without faults."""
    faults = list(faults)
    if not faults:
        return
    lines = [f"  - {fault}" for fault in faults[:shown]]
    if len(faults) > shown:
        lines.append(f"  - ... and {len(faults) - shown} more")
    raise InputError("\n".join([f"{heading} ({len(faults)}):", *lines]))


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what a user or the machine did into one message on stderr and exit code 1; let our own faults trace back."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        remedy = "; free some space and run it again: what was finished is kept" if error.errno in _NO_SPACE else ""
        print(f"error: {name}{error.strerror or error}{remedy}", file=sys.stderr)
        sys.exit(1)
