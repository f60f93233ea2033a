"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str, limit_s: float = 300) -> None:
    """Return once `condition` holds; fail after `limit_s`, with `what` was waited for."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit_s:.0f} s: {what}"
        time.sleep(0.02)
