"""Checkpoints of unfinished trainings, so that a killed training continues.

They are in an ignored folder, because DVC deletes the outputs of a stage before it starts the stage. The name of the
folder holds the hash of everything that matters to the result: a changed setting never meets an old checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import filelock

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file, name_path_in_errors
from segdistill.core.log import logger
from segdistill.params.model import Params
from segdistill.paths import SCRATCH

LOCK, STATE = "lock", "state.pt"
FOLD_TRAININGS = "teacher-folds"  # the phase of a cross-fitted teacher's further trainings, which are named by fold
# A training whose DVC was killed ends after its running step; the next one waits that long for it.
WAIT_S = 60.0


class Checkpointer:
    """The scratch folder of one training: `root/JOB/KEY/state.pt`, held by one process at a time."""

    def __init__(self, job: str, key: str, root: str | Path = SCRATCH, wait_s: float = WAIT_S) -> None:
        self.job, self.wait_s = job, wait_s
        self.folder = Path(root) / job / key
        self._lock = filelock.FileLock(self.folder.parent / LOCK, thread_local=False)

    def __enter__(self) -> Checkpointer:
        """Lock the job, and remove the checkpoints of its earlier settings.

        Raises:
            UserError: another process trains this job, and has not ended after `wait_s`.
        """
        with name_path_in_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                logger.info("%s: waits for another process that is training it", self.job)
                try:
                    self._lock.acquire(timeout=self.wait_s)
                except filelock.Timeout:
                    busy = f"{self.job} is being trained by another process; wait for it, or end it"
                    raise UserError(f"{self.folder.parent}: {busy}") from None
            for outdated in self.folder.parent.iterdir():
                if outdated.is_dir() and outdated != self.folder:
                    shutil.rmtree(outdated)
            self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the job and keep its state."""
        self._lock.release()

    def save(self, state: dict) -> None:
        """Replace the saved state by `state` (tensors and plain values), atomically."""
        import torch

        content = io.BytesIO()  # in memory first, because torch's message of a full disk names no file
        torch.save(state, content)
        with atomic_file(self.folder / STATE) as temporary:
            temporary.write_bytes(content.getbuffer())

    def load(self) -> dict | None:
        """Return the saved state; None where there is none, or, with a warning, where it is damaged."""
        import torch

        path = self.folder / STATE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - damage surfaces as nearly any type, and must not end a sweep
            cause = " ".join(str(error).split())[:100]
            logger.warning("%s: unreadable (%s); %s starts from its first step", path, cause, self.job)
            return None

    def clear(self) -> None:
        """Remove the state and release the job; call it when the outputs are on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def clear_removed(params: Params, root: Path = SCRATCH) -> None:
    """Remove the checkpoints of trainings that `params` no longer name, except for those that are running."""
    jobs = set() if params.teacher.checkpoints else {"teacher"}
    jobs |= {f"distill/{run}" for run in params.students()}
    jobs |= {f"finetune/{run}" for run in params.students() if params.finetune_params(run).steps}
    jobs |= {f"{FOLD_TRAININGS}/{fold}" for fold in range(params.teacher.cross_fit or 0)}
    for folder in sorted({lock.parent for lock in root.rglob(LOCK)}):
        if str(folder.relative_to(root)) in jobs:
            continue
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(folder / LOCK, timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


class TrainingStoppedError(UserError):
    """A signal stopped a training, which has saved its state."""


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that receives the signal when SIGINT or SIGTERM asks to stop, so that the running step ends."""
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: received.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
