"""Messages to people on stderr: one logger with one formatter."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("segdistill")


class _Formatter(logging.Formatter):
    """Formats `warning: text` and `error: text`; information has no prefix."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + record.getMessage()


class _Stderr(logging.StreamHandler):
    """Writes to the current sys.stderr, which tests and progress bars replace."""

    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, value: object) -> None:
        pass


_handler = _Stderr()
_handler.setFormatter(_Formatter())
logger.addHandler(_handler)
logger.setLevel(logging.INFO)
logger.propagate = False  # else a root handler of MLflow or a test would print each message again
