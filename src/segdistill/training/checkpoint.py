"""Checkpoints of unfinished trainings, so that a killed training continues."""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import filelock

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file
from segdistill.core.log import logger
from segdistill.core.scratch import LOCK, WAIT_S, ScratchFolder
from segdistill.params.model import Params
from segdistill.paths import LOGITS_BUILDS, SCRATCH

STATE = "state.pt"
FOLD_TRAININGS = "teacher-folds"  # the phase of a cross-fitted teacher's further trainings, which are named by fold


class Checkpointer(ScratchFolder):
    """The scratch folder of one training, with its state: `root/JOB/KEY/state.pt`."""

    def __init__(self, job: str, key: str, root: str | Path = SCRATCH, wait_s: float = WAIT_S) -> None:
        super().__init__(job, key, root, wait_s)

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


def clear_removed(params: Params, root: Path = SCRATCH) -> None:
    """Remove what unfinished work left that `params` no longer name, except for what is running."""
    jobs = set() if params.teacher.checkpoints else {"teacher"}
    jobs |= {f"distill/{run}" for run in params.students()}
    jobs |= {f"finetune/{run}" for run in params.students() if params.finetune_params(run).steps}
    jobs |= {f"{FOLD_TRAININGS}/{fold}" for fold in range(params.teacher.cross_fit or 0)}
    jobs |= {f"{LOGITS_BUILDS}/{kind}" for kind in params.teacher_logits.kinds}
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
