"""What is told of a training where there is no terminal."""

from __future__ import annotations

from segdistill.progress import Progress


def test_the_time_left_is_told_once_something_is_done(capsys):
    with Progress("distill/tiny", 4) as progress:
        pass
    assert capsys.readouterr().err == "distill/tiny: step 0/4\n"
    with progress:
        progress.advance(4)
    assert capsys.readouterr().err.endswith(" steps/s, 0 s left\n")
