"""A folder for unfinished work, which one process at a time holds and a later one continues."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Self

import filelock

from segdistill.core.errors import UserError
from segdistill.core.files import name_path_in_errors
from segdistill.core.log import logger

LOCK = "lock"
# A stage whose DVC was killed ends after what it is doing; the next one waits that long for it.
WAIT_S = 60.0


class ScratchFolder:
    """The folder `root/JOB/KEY` of one job.

    It is ignored by git and DVC, because DVC deletes the outputs of a stage before it starts the stage. The key is the
    hash of everything that matters to the result: changed settings never meet unfinished work of earlier ones.
    """

    def __init__(self, job: str, key: str, root: str | Path, wait_s: float = WAIT_S) -> None:
        self.job, self.wait_s = job, wait_s
        self.folder = Path(root) / job / key
        self._lock = filelock.FileLock(self.folder.parent / LOCK, thread_local=False)

    def __enter__(self) -> Self:
        """Lock the job, and remove what its earlier settings left.

        Raises:
            UserError: another process works on this job, and has not ended after `wait_s`.
        """
        with name_path_in_errors(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                logger.info("%s: waits for another process that works on it", self.job)
                try:
                    self._lock.acquire(timeout=self.wait_s)
                except filelock.Timeout:
                    busy = f"another process works on {self.job}; wait for it, or end it"
                    raise UserError(f"{self.folder.parent}: {busy}") from None
            for outdated in self.folder.parent.iterdir():
                if outdated.is_dir() and outdated != self.folder:
                    shutil.rmtree(outdated)
            self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the job and keep its folder."""
        self._lock.release()

    def clear(self) -> None:
        """Remove the folder and release the job; call it when the outputs are on disk."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()
