"""The state of an unfinished training, so that a killed one goes on where it was.

It lies in an ignored folder, because DVC deletes a stage's outputs before it starts it. The folder's name holds the
hash of everything that matters to the result: a changed setting never meets an old state.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from segdistill.base.errors import InputError
from segdistill.base.files import atomic_file, named_in_faults
from segdistill.base.params import Params

ROOT = Path("scratch")
LOCK = "lock"
# A training whose DVC was killed ends after the step it is in; whoever goes on with it waits for that.
PATIENCE_S = 60.0


class Scratch:
    """The scratch folder of one training job: `root/job/key/state.pt`, held by one process at a time."""

    def __init__(self, job: str, key: str, root: str | Path = ROOT, patience_s: float = PATIENCE_S) -> None:
        self.job, self.patience_s = job, patience_s
        self.folder = Path(root) / job / key

    def __enter__(self) -> Scratch:
        """Hold the folder and drop what outdated settings of the same job left.

        Raises:
            InputError: another process trains this job, and goes on with it.
        """
        with named_in_faults(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._held()
            for outdated in self.folder.parent.iterdir():
                if outdated.is_dir() and outdated != self.folder:
                    shutil.rmtree(outdated)
            self.folder.mkdir(exist_ok=True)
        return self

    def _held(self) -> TextIO:
        deadline, told = time.monotonic() + self.patience_s, False
        while (lock := _locked(self.folder.parent)) is None:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{self.folder.parent}: {self.job} is being trained by another process; wait for it, or end it"
                )
            if not told:
                print(f"{self.job}: waits for another process that is training it", file=sys.stderr)
                told = True
            time.sleep(0.1)
        return lock

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def save(self, state: dict) -> None:
        """Replace the saved state by `state` (tensors and plain values), atomically."""
        import torch

        content = io.BytesIO()  # first, because torch words a full disk in its own way
        torch.save(state, content)
        with atomic_file(self.folder / "state.pt") as temporary:
            temporary.write_bytes(content.getbuffer())

    def load(self) -> dict | None:
        """The saved state, or None where there is none; one that was damaged since is none, and a warning says so."""
        import torch

        path = self.folder / "state.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - damage shows in many ways, and none of them ends a sweep
            cause = " ".join(str(error).split())[:100]
            print(f"warning: {path}: unreadable ({cause}); {self.job} starts from its first step", file=sys.stderr)
            return None

    def clear(self) -> None:
        """Forget the state and let go of the job: the outputs are on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def clear_removed(params: Params, root: Path = ROOT) -> None:
    """Remove what trainings left that `params` no longer ask for, except for those that are being trained."""
    jobs = set() if params.teacher.checkpoints else {"teacher"}
    jobs |= {f"distill/{run}" for run in params.runs}
    jobs |= {f"finetune/{run}" for run in params.runs if params.finetune_params(run).steps}
    for folder in sorted({lock.parent for lock in root.rglob(LOCK)}):
        if str(folder.relative_to(root)) in jobs:
            continue
        lock = _locked(folder)
        if lock is not None:
            with lock:
                shutil.rmtree(folder, ignore_errors=True)


def _locked(folder: Path) -> TextIO | None:
    """The lock of a job's folder, held until it is closed; None where another process holds it."""
    lock = (folder / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


class TrainingStoppedError(InputError):
    """A training was asked to stop and has saved its state."""


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives the signal when SIGINT or SIGTERM asks to stop, so that a step is never cut in two."""
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: received.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
