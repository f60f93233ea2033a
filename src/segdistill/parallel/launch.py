"""Start a rank for each device of a run, through torchrun, and say in one line what ended them."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.core.stage import LAUNCHER_VARIABLE
from segdistill.params.model import ComputeParams

# Ranks talk over the loopback device alone where one machine has them all.
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


@contextlib.contextmanager
def on_devices(compute: ComputeParams) -> Iterator[None]:
    """Run the body on `compute.devices` devices: in this process for one, else in as many ranks.

    A process that torchrun started is a rank: it joins the others, runs the body with them, and only the first rank
    returns. Any other process starts the ranks as this same command, and exits when they end.

    Raises:
        UserError: there are fewer GPUs, or a rank ended by an error; its message is that of the first error.
        KeyboardInterrupt: a signal ended the ranks, outside a training.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from segdistill.parallel import ranks

        ranks.join(compute)
        yield
        ranks.leave()
    elif compute.devices > 1:
        _run_ranks(compute)
        sys.exit(0)
    else:
        yield


def _run_ranks(compute: ComputeParams) -> None:
    """Run this command in a rank for each device, and return when all have ended well."""
    import torch
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    if compute.device != "cpu" and torch.cuda.is_available() and compute.devices > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"compute.devices: found {compute.devices}; this process sees {gpus} GPUs, and allowed are 1 to {gpus}"
        )
    os.environ |= _LOOPBACK | dict(os.environ) | {LAUNCHER_VARIABLE: str(os.getpid())}
    failures: Mapping[int, ProcessFailure] = {}
    stopped_by = None
    with tempfile.TemporaryDirectory(prefix="segdistill-ranks-") as folder:
        # torchrun logs 129 lines about a lost rank, none of which names a cause that the ranks' own errors do not.
        logging.disable(logging.CRITICAL)
        try:
            settings = torchrun.parse_args(
                ["--standalone", f"--nproc-per-node={compute.devices}", f"--log-dir={folder}", sys.argv[0]]
            )
            settings.training_script_args = sys.argv[1:]  # which torchrun would take for abbreviations of its own
            torchrun.run(settings)
        except ChildFailedError as error:
            failures = error.failures
        except SignalException as request:
            stopped_by = request.sigval
        finally:
            logging.disable(logging.NOTSET)
        # One cause ends all ranks: those that lose another one have a later error. SIGTERM is how torchrun ends these.
        killed = [
            (failure.timestamp, rank, signal.Signals(-failure.exitcode))
            for rank, failure in failures.items()
            if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
        ]
        errors = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).rglob("error.json")]
    if killed:
        _, rank, number = min(killed)
        raise UserError(
            f"rank {rank} of {compute.devices} was killed by {number.name}, which ended the run; "
            "dvc repro continues from the last checkpoint"
        )
    if stopped_by is not None:  # ranks that were waiting for others have lost these
        errors = [error for error in errors if not error["is_bug"]]
    if errors:
        raise UserError(min(errors, key=lambda error: error["time_s"])["message"]["message"])
    if stopped_by is not None:
        raise KeyboardInterrupt(stopped_by)
    if failures:
        codes = ", ".join(f"rank {rank} with exit code {failure.exitcode}" for rank, failure in failures.items())
        raise UserError(f"the run ended: {codes}")
