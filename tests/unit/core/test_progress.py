"""What is told of a training where there is no terminal, and what runs beside one where there is."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from segdistill.core.progress import Progress


def test_the_time_left_is_told_once_something_is_done(capsys):
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
def test_nothing_runs_beside_what_is_timed(monkeypatch, timing):
    monkeypatch.setattr(sys, "stderr", Terminal())
    before = threading.active_count()
    with Progress("timing", 2, unit="round", timing=timing) as progress:
        assert (threading.active_count() == before) == timing
        progress.advance()
        shown = sys.stderr.getvalue()
    assert ("1/2" in shown) or not timing
