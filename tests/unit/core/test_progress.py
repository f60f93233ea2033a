"""Progress: lines without a terminal, a bar with one, no thread while timing."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from segdistill.core.progress import Progress


def test_time_left_is_shown_after_the_first_step(capsys):
    with Progress("distill/tiny", 4) as progress:
        pass
    assert capsys.readouterr().err == "distill/tiny: step 0/4\n"
    with progress:
        progress.advance(4)
    assert capsys.readouterr().err.endswith(" steps/s, 0 s left\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("timing", [True, False])
def test_timing_starts_no_thread(monkeypatch, timing):
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with Progress("timing", 2, unit="round", timing=timing) as progress:
        assert (threading.active_count() == before) == timing
        progress.advance()
        shown = sys.stderr.getvalue()
    assert ("1/2" in shown) or not timing
