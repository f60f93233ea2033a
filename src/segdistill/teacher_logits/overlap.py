"""Reading, computing and writing at the same time, where a GPU computes and the processor has nothing else to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Overlap:
    """Two threads around the caller: one makes its next item, one does its last call; or neither.

    Calls run in order, and an error in one is raised by the next call, or at the end of the block.

    Args:
        active: whether there are threads. On a CPU they would take cores from the network.
    """

    def __init__(self, active: bool) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="reads") if active else None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writes") if active else None
        self._last: Future | None = None

    def __enter__(self) -> Overlap:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for pool in filter(None, (self._reader, self._writer)):
            pool.shutdown()
        if kind is None and self._last is not None:
            self._last.result()

    def ahead(self, items: Iterator[T]) -> Iterator[T]:
        """Yield `items`; the next one is made while the caller uses this one."""
        if self._reader is None:
            yield from items
            return
        end = object()
        upcoming = self._reader.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = self._reader.submit(next, items, end)
            yield item  # type: ignore[misc] # mypy does not see that it is not `end`

    def then(self, call: Callable[..., None], *given: object) -> None:
        """Call it while the caller continues; wait first for the call before it, so that at most one waits."""
        if self._writer is None:
            call(*given)
            return
        if self._last is not None:
            self._last.result()
        self._last = self._writer.submit(call, *given)
