"""The state of an unfinished training, so that a killed one goes on where it was.

It lies in an ignored folder, because DVC deletes a stage's outputs before it starts it. The folder's name holds the
hash of everything that matters to the result: a changed setting never meets an old state.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
from pathlib import Path

import torch

from segdistill.errors import InputError
from segdistill.files import atomic_file


class Scratch:
    """The scratch folder of one training job: `root/job/key/state.pt`, held by one process at a time."""

    def __init__(self, job: str, key: str, root: str | Path = "scratch") -> None:
        self.job = job
        self.folder = Path(root) / job / key
        self._lock = None

    def __enter__(self) -> Scratch:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder.parent / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{self.folder.parent}: {self.job} is being trained by another process; wait for it"
            ) from None
        for outdated in self.folder.parent.iterdir():
            if outdated.is_dir() and outdated != self.folder:
                shutil.rmtree(outdated)
        self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def save(self, state: dict) -> None:
        """Replace the saved state by `state` (tensors and plain values), atomically."""
        with atomic_file(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)

    def load(self) -> dict | None:
        """The saved state, or None where there is none yet."""
        path = self.folder / "state.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None

    def clear(self) -> None:
        """Forget the state: the outputs are on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)


class TrainingStoppedError(InputError):
    """A training was asked to stop and has saved its state."""


@contextlib.contextmanager
def stop_requests():
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
