"""What the ranks of a run exchange. In a run of one process every function here is a no-op.

A batch, an evaluation and a cache are the same on any number of ranks: each rank computes its part, and what is a mean
over a batch counts the whole batch. The first rank alone writes files and logs.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.params.model import ComputeParams

T = TypeVar("T")

# How long a rank waits for another one. The first writes files meanwhile; a rank that has died is noticed at once.
TIMEOUT = datetime.timedelta(minutes=30)


def join(compute: ComputeParams) -> None:
    """Join the ranks that torchrun started; all but the first log nothing from now on.

    Raises:
        UserError: this machine has no GPU for this rank.
    """
    use_cuda = compute.device != "cpu" and torch.cuda.is_available()
    if use_cuda:
        if (gpus := torch.cuda.device_count()) <= local_rank():
            raise UserError(f"compute.devices: a rank for each GPU is allowed, {gpus} here; found rank {local_rank()}")
        torch.cuda.set_device(local_rank())
    # Python objects and counts travel between CPUs, gradients between GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=TIMEOUT)
    # The weight of a depthwise convolution is in both memory layouts at once, and its gradient may name the other one.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if not is_first():
        logger.setLevel(logging.CRITICAL)
        warnings.simplefilter("ignore")


def leave() -> None:
    """Wait for all ranks and end all but the first, which continues alone."""
    if count() == 1:
        return
    wait()
    first = is_first()
    dist.destroy_process_group()
    if not first:
        sys.exit(0)


def count() -> int:
    """Return the number of ranks, 1 in a run of one process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this rank writes and logs."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this rank among those of its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def share_of_threads(threads: int) -> int:
    """Return how many of the `threads` of a run on one machine this rank uses."""
    return max(1, threads // int(os.environ["LOCAL_WORLD_SIZE"])) if count() > 1 else threads


def wait() -> None:
    """Wait until all ranks are here."""
    if count() > 1:
        dist.barrier()


def slots(batch_size: int) -> slice:
    """Return the part of a batch that is this rank's: neighbouring crops, as many for each rank."""
    size = batch_size // count()
    return slice(rank() * size, (rank() + 1) * size)


def own(items: Sequence[T]) -> Sequence[T]:
    """Return every count-th of `items`, from the rank's number on."""
    return items[rank() :: count()]


def in_order(results: Iterable[T], total: int) -> Iterator[T]:
    """Yield the results of all ranks on the first one, in order, and nothing on the others.

    `results` are those of the rank's `own` of `total` items.
    """
    if count() == 1:
        yield from results
        return
    left = iter(results)
    for first in range(0, total, count()):
        gathered: list[Any] | None = [None] * count() if is_first() else None
        dist.gather_object(next(left, None), gathered, dst=0)
        yield from itertools.islice(gathered or (), total - first)


def by_first(function: Callable[[], T]) -> T:
    """Return what `function` returns on the first rank, which alone calls it."""
    if count() == 1:
        return function()
    found = [function() if is_first() else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


@contextlib.contextmanager
def written_by_first(output: contextlib.AbstractContextManager[T]) -> Iterator[T]:
    """Enter `output` on the first rank alone, and yield its value, such as a path, on all."""
    if count() == 1:
        with output as value:
            yield value
        return
    with contextlib.ExitStack() as entered:
        yield by_first(lambda: entered.enter_context(output))
        wait()  # until no rank reads it any more
    wait()  # until it has its name


def any_of(flag: bool) -> bool:
    """Return whether any rank has the flag; all ranks get the same answer."""
    if count() == 1:
        return flag
    raised = torch.tensor(flag, dtype=torch.int32)
    dist.all_reduce(raised, dist.ReduceOp.MAX)
    return bool(raised)


def mean(values: Tensor) -> Tensor:
    """Return the mean over all ranks, without gradient."""
    if count() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / count()


def mean_count(counted: Tensor, at_least: float = 0.0) -> Tensor:
    """Return what a rank divides the sum over its part of a batch by, from the count of that part.

    It is the count of the whole batch, at least `at_least`, by the number of ranks. So the mean over the ranks of the
    quotients, whose gradient DistributedDataParallel computes, is the mean over the batch: ranks have unequal numbers
    of valid pixels.
    """
    if count() > 1:
        counted = counted.detach().clone()
        dist.all_reduce(counted)
    counted = counted.clamp(min=at_least) if at_least else counted
    return counted / count() if count() > 1 else counted


def joined(values: Tensor) -> Tensor:
    """Return the values (N,) of all ranks, which have as many each, without gradient."""
    if count() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(count())]
    dist.all_gather(parts, values.detach().contiguous())
    return torch.cat(parts)
