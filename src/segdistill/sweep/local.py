"""A sweep on this machine: shared stages, then several runs at a time in this workspace, then benchmark and report.

Every run is a `dvc repro` of its own, and DVC's lock orders what they write into dvc.lock. So a run leaves the same
files as in a serial `dvc repro` with as many threads, and either command continues what the other left unfinished.
"""

from __future__ import annotations

import os
import re
import subprocess
import time

from segdistill.core.log import logger
from segdistill.core.provenance import THREADS_VARIABLE, usable_cores
from segdistill.params.model import Params
from segdistill.sweep.plan import in_order, log_of, print_end
from segdistill.sweep.processes import POLL_S, DvcProcess, dvc_environment


def sweep(params: Params, jobs: int) -> None:
    """Run what changed since the last sweep, `jobs` runs at a time; raises as `in_order` does."""
    # By all runs, not by those that changed: an interrupted training continues only with as many threads.
    count = min(jobs, len(params.students()))

    def run_changed(changed: dict[str, list[str]], signals: list[int]) -> list[str]:
        slots = Slots(params, count)
        print(f"{len(changed)} of {len(params.students())} runs changed; {slots.described}", flush=True)
        return _run_side_by_side(changed, slots, signals)

    in_order(params, run_changed, ["repro"])


class Slots:
    """The cores and GPUs of this machine in `count` equal shares: two trainings on one core slow each other tenfold."""

    def __init__(self, params: Params, count: int) -> None:
        self.count, cores = count, usable_cores()
        self.threads = params.compute.threads or max(1, cores // count)
        gpus = visible_gpus() if params.compute.device != "cpu" else []
        each = params.compute.devices  # a run on several gets as many; a remainder stays free
        self.gpus = [",".join(gpus[i : i + each]) for i in range(0, len(gpus) - each + 1, each)]
        if params.compute.threads * count > cores:
            logger.warning(
                "compute.threads: found %d; %d runs at a time then share %d cores and slow each other; "
                "0 shares the cores out",
                *(params.compute.threads, count, cores),
            )

    @property
    def described(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''} each"
        gpus = sum(len(names.split(",")) for names in self.gpus)
        return f"{self.count} at a time, {threads}" + (f", on {gpus} GPUs" if gpus else "")

    def environment(self, slot: int) -> dict[str, str]:
        """Return the environment of a run in the slot of that number, from 0."""
        environment = dvc_environment() | {THREADS_VARIABLE: str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return environment


def visible_gpus() -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES selects the GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # By UUID: CUDA numbers GPUs by their speed, nvidia-smi by their place. A GPU in MIG mode is its slices.
    return re.findall(r"\(UUID: (MIG-[^)]+)\)", listed) or re.findall(r"\(UUID: (GPU-[^)]+)\)", listed)


def _run_side_by_side(stages_of: dict[str, list[str]], slots: Slots, signals: list[int]) -> list[str]:
    """Run the stages of each run, as many runs at a time as there are slots; return the runs that failed."""
    waiting, free, done = list(stages_of), list(range(slots.count)), 0
    running: dict[str, tuple[int, DvcProcess]] = {}
    failed: list[str] = []
    while running or (waiting and not signals):
        while waiting and free and not signals:
            run, slot = waiting.pop(0), free.pop(0)
            with log_of(run).open("w") as output:
                command = ["--wait-for-lock", "repro", "--single-item", *stages_of[run]]
                running[run] = slot, DvcProcess(command, slots.environment(slot), output)
            print(f"started {run}", flush=True)
        for run, (slot, child) in list(running.items()):
            child.pass_on(signals)
            if child.exit_code is None:
                continue
            del running[run]
            free.append(slot)
            if child.exit_code and signals:
                continue
            done += 1
            failed += [run] if child.exit_code else []
            took = f"after {time.monotonic() - child.started_s:.0f} s ({done} of {len(stages_of)})"
            print_end(run, took, has_failed=child.exit_code != 0)
        time.sleep(POLL_S)
    return failed
