"""Damaged files of every kind are read or refused; anything else is found."""

from __future__ import annotations

import os
import signal
import time

import pytest
import workers
from readers import READERS, Reader, fuzz, refused_seeds, reproduction
from workers import ACCEPTED, REFUSED, results

from segdistill.prepare import images as png_file

pytestmark = pytest.mark.usefixtures("one_thread")
INPUTS, SEED = 45, 0  # of each reader; more of them: python tests/fuzz/readers.py


def skip_without_decoder(reader: Reader) -> None:
    if "kornia-rs" in reader.name and png_file.fast_decoder() is None:
        pytest.skip("kornia-rs is not installed")


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_valid_file_is_accepted(reader):
    skip_without_decoder(reader)
    assert refused_seeds(reader) == []


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_read_or_refused(reader):
    skip_without_decoder(reader)
    findings = fuzz(reader, INPUTS, SEED)
    assert len(findings.all) == INPUTS
    assert findings.failures == [], "\n".join(reproduction(reader, SEED, failure) for failure in findings.failures)
    assert any(result.outcome == REFUSED for result in findings.all), "no damage was noticed"


def hang(number: int) -> None:
    time.sleep(600)


def spin(number: int) -> None:
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass


def fill_memory(number: int) -> None:
    bytearray(4 * 2**30)


def grow(number: int) -> None:
    bytearray(b"x" * 100 * 2**20)


@pytest.mark.parametrize(
    ("fail", "outcome"),
    [
        (lambda number: os.kill(os.getpid(), signal.SIGSEGV), "ended by signal SIGSEGV"),
        (lambda number: os._exit(3), "exit code 3"),
        (lambda number: {}["x"], "KeyError ('x') from test_fuzz_readers.py:"),
        (hang, "no end within 2 s"),
        (spin, "s of a processor"),
        (fill_memory, "MemoryError"),
        (grow, "memory grew by"),
    ],
    ids=["signal", "exit", "exception", "hang", "slow", "no memory", "much memory"],
)
def test_a_reader_that_fails_is_found_and_the_next_inputs_are_read(monkeypatch, fail, outcome):
    monkeypatch.setattr(workers, "HANG_S", 2.0 if fail is hang else 30.0)
    monkeypatch.setattr(workers, "MOST_GROWTH_MB", 50)
    monkeypatch.setattr(workers, "MOST_CPU_S", 0.2 if "processor" in outcome else 5.0)

    def read(number: int) -> None:
        if number == 2:
            fail(number)
        if number == 3:
            raise FileNotFoundError("no such file")

    found = list(results(lambda number: lambda: read(number), range(5)))
    assert [result.number for result in found] == list(range(5))
    assert [result.outcome for result in found if result.number != 2] == [ACCEPTED, ACCEPTED, REFUSED, ACCEPTED]
    assert outcome in found[2].outcome
    assert found[2].is_failure
