"""Ctrl-C, a killed stage, a killed DVC, two DVCs at once: a training continues, to the same bytes."""

from __future__ import annotations

import contextlib
import os
import signal

import psutil
import pytest

from support.checkout import Checkout
from support.waiting import wait_until

pytestmark = pytest.mark.slow
STAGE = "distill@vanilla"
LIMIT_S = 120


@pytest.fixture
def checkout(tmp_path):
    made = Checkout(tmp_path)
    # Enough steps that every interruption meets a training.
    made.params["distill"] |= {"steps": 100, "crop_px": [32, 64], "evaluate_every_steps": 50}
    made.params["distill"] |= {"checkpoint_every_steps": 2}
    made.save_params()
    return made


class Training:
    """`dvc repro` of one training in the background, suspended at its next checkpoint.

    However slow the machine, the training is then in the middle of its steps.
    """

    def __init__(self, checkout: Checkout) -> None:
        self.checkout, before = checkout, self._saved(checkout)
        self.dvc = checkout.start("dvc", "repro", STAGE)
        wait_until(lambda: self._saved(checkout) - before or self.dvc.poll() is not None, "no checkpoint was written")
        assert self.dvc.poll() is None, checkout.said.read_text()
        self.started = psutil.Process(self.dvc.pid).children(recursive=True)
        *_, self.stage = (process for process in self.started if "stages/distill.py" in process.cmdline())
        self.stage.suspend()
        assert self._saved(checkout), "the training was over too soon to be disturbed"

    @staticmethod
    def _saved(checkout: Checkout) -> set[int]:
        """Return when each checkpoint was written."""
        written = set()
        for path in (checkout.folder / "scratch").rglob("state.pt"):
            with contextlib.suppress(FileNotFoundError):  # the training has ended meanwhile
                written.add(path.stat().st_mtime_ns)
        return written

    def end(self) -> tuple[int, str]:
        """Return the exit code and the output, once it has ended."""
        return self.dvc.wait(LIMIT_S), self.checkout.said.read_text()


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_interrupted_training_gives_the_same_bytes(checkout):
    # Ctrl-C reaches every process of the terminal.
    training = Training(checkout)
    os.killpg(training.dvc.pid, signal.SIGINT)
    training.stage.resume()
    code, said = training.end()
    assert code != 0
    assert said.count("error: distill/vanilla: stopped after step") == 1
    assert "dvc repro continues from there" in said
    assert "Traceback" not in said
    assert not any(map(runs, training.started))

    # A killed stage, as by the system when memory runs out: it cannot react.
    training = Training(checkout)
    assert "distill/vanilla: continues after step" in checkout.said.read_text()
    training.stage.kill()
    code, said = training.end()
    assert code != 0
    assert "failed to reproduce 'distill@vanilla'" in said

    # A killed DVC: its stage ends by itself, after the step that it is in.
    training = Training(checkout)
    assert "distill/vanilla: continues after step" in checkout.said.read_text()
    training.dvc.kill()
    training.dvc.wait()
    training.stage.resume()
    wait_until(lambda: not runs(training.stage), "the stage outlives its DVC")

    # Two at once: the second ends with a line that says why, and the first is not disturbed.
    training = Training(checkout)
    second = checkout.call("dvc", "repro", STAGE)
    training.stage.resume()
    assert second.returncode != 0
    assert "ERROR: " in second.stderr
    assert "lock" in second.stderr or "busy" in second.stderr, second.stderr
    code, said = training.end()
    assert code == 0, said
    assert "distill/vanilla: continues after step" in said
    interrupted = checkout.lock()[STAGE]

    assert checkout.dvc("repro", "--force", "--single-item", "--no-run-cache", STAGE) == [STAGE]
    assert checkout.lock()[STAGE] == interrupted
