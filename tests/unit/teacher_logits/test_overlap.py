"""Reading, computing and writing overlap, in order, and give the files that one after the other gives."""

from __future__ import annotations

import threading

import pytest

from segdistill.teacher_logits.overlap import Overlap

WAIT_S = 20.0


@pytest.mark.parametrize("active", [False, True])
def test_all_items_come_in_order_and_all_calls_are_made_in_order(active):
    seen: list[int] = []
    with Overlap(active) as overlap:
        for item in overlap.ahead(iter(range(20))):
            overlap.then(seen.append, item)
    assert seen == list(range(20))


def test_the_next_item_is_made_while_the_caller_uses_this_one():
    second = threading.Event()

    def items():
        yield 1
        second.set()
        yield 2

    with Overlap(active=True) as overlap:
        for item in overlap.ahead(items()):
            assert second.wait(WAIT_S), item


def test_a_call_runs_while_the_caller_continues():
    continued, done = threading.Event(), threading.Event()

    def call() -> None:
        if continued.wait(WAIT_S):
            done.set()

    with Overlap(active=True) as overlap:
        overlap.then(call)
        continued.set()
    assert done.is_set()


def test_without_a_gpu_the_caller_does_all_itself():
    threads = []
    with Overlap(active=False) as overlap:
        for _ in overlap.ahead(threads.append(threading.current_thread()) or item for item in range(2)):
            overlap.then(lambda: threads.append(threading.current_thread()))
    assert set(threads) == {threading.current_thread()}


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("number", [0, 4, 5])
def test_an_error_in_a_call_ends_the_block(active, number):
    def call(item: int) -> None:
        if item == number:
            raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full"), Overlap(active) as overlap:
        for item in overlap.ahead(iter(range(6))):
            overlap.then(call, item)


def test_an_error_in_an_item_ends_the_block():
    def items():
        yield 1
        raise OSError(5, "unreadable")

    with pytest.raises(OSError, match="unreadable"), Overlap(active=True) as overlap:
        list(overlap.ahead(items()))
