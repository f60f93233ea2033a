"""The trials of a search in Optuna's storage, which several processes and machines may share."""

from __future__ import annotations

import contextlib
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import optuna
import sqlalchemy.exc
from optuna.trial import TrialState

from segdistill.core.errors import UserError, without_passwords
from segdistill.paths import SCRATCH
from segdistill.search.space import Choice, Interval, Space

FOLDER = SCRATCH / "search"  # locks: the one of asking, and one for each trial that a process runs
FACTS, WORKSPACE, SAME_AS = "segdistill", "workspace", "same_as"  # attributes of the study, of a trial
DISTILLED = 0  # the step at which a trial reports the score of its first steps; its value is that of the finetuned one
SQLITE_WAIT_S = 120
PAUSES_S = (0.2, 0.5, 1.0, 2.0)  # between tries to open a new storage


@contextlib.contextmanager
def storage_errors(storage: str, *also: type[Exception]) -> Iterator[None]:
    """Turn what the body raises about a storage into a UserError that names it; `also` are further types of it."""
    types: tuple[type[Exception], ...] = (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, *also)
    try:
        yield
    except types as error:
        cause = error.__cause__ if isinstance(error.__cause__, sqlalchemy.exc.SQLAlchemyError) else error
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())[:300]
        raise UserError(
            f"--storage: found {without_passwords(storage)}; Optuna cannot use it ({type(cause).__name__}: {text}); "
            "allowed are sqlite:///FILE and, with the extra postgres, postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None


@dataclass
class OpenTrial:
    """A trial that this process runs; its lock says so to others."""

    run: str
    values: dict[str, Any]
    is_new: bool
    _trial: optuna.Trial
    _lock: filelock.FileLock

    def report(self, distilled_score: float) -> bool:
        """Report the holdout score of the distilled student; return whether it is below the median of finished trials.

        As Optuna's median pruner does, wait for five finished trials first.
        """
        found = self._trial.study.trials[self._trial.number].intermediate_values
        if DISTILLED not in found:  # an interrupted trial may have reported it
            self._trial.report(distilled_score, DISTILLED)
        return bool(self._trial.should_prune())

    def finish(self, score: float) -> None:
        self._close(score, TrialState.COMPLETE)

    def prune(self) -> None:
        self._close(None, TrialState.PRUNED)

    def fail(self) -> None:
        self._close(None, TrialState.FAIL)

    def leave(self) -> None:
        """Leave the trial unfinished, for the next search in this folder."""
        self._lock.release()

    def _close(self, score: float | None, state: TrialState) -> None:
        self._trial.study.tell(self._trial, score, state=state)
        self._lock.release()


@dataclass(frozen=True)
class Result:
    """A finished trial: its run, the holdout mIoU after the first and after all steps, and its values."""

    run: str
    score: float
    distilled_score: float | None
    values: dict[str, Any]


class Study:
    """The search `name` in `storage`, a URL that SQLAlchemy reads; runs are named by it and the trial's number."""

    def __init__(self, storage: str, name: str, space: Space, facts: dict[str, str], seed: int) -> None:
        """Open the study, or make it.

        Raises:
            UserError: the study of that name is of other `facts`.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.name, self.space, self.seed = name, space, seed
        self.workspace = f"{platform.node()}:{Path.cwd()}"
        FOLDER.mkdir(parents=True, exist_ok=True)
        # ImportError: no driver of the database; RuntimeError: the tables are of another Optuna.
        with self._asking(), storage_errors(storage, ImportError, RuntimeError):
            self._study = _opened_study(storage, name)
            stored = self._study.user_attrs.get(FACTS)
            if stored is None:
                self._study.set_user_attr(FACTS, facts)
            elif stored != facts:
                other = [
                    f"{key}: {stored.get(key)}, now {facts[key]}" for key in facts if stored.get(key) != facts[key]
                ]
                raise UserError(
                    f"--name: the search {name!r} in {without_passwords(storage)} began with other values, and scores "
                    f"would not compare ({'; '.join(other)}); take another --name, or the values it began with"
                )

    def _asking(self) -> filelock.FileLock:
        """Return the lock under which processes of this folder open the study and take trials."""
        return filelock.FileLock(FOLDER / "ask.lock")

    def run_of(self, number: int) -> str:
        """Return the name of the run of a trial."""
        return f"{self.name}-{number:03d}"

    def next_trial(self, limit: int) -> OpenTrial | None:
        """Return an unfinished trial of this folder that no process runs, else a new one; None where there are `limit`.

        A trial with the values of an earlier one gets its result, without a run.
        """
        with self._asking():
            if (trial := self._abandoned()) is not None:
                return trial
            while self._count() < limit:
                opened = self._opened(self._study.ask())
                ended = self._study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
                same = (one for one in ended if one.params == opened.values and SAME_AS not in one.user_attrs)
                if (twin := next(same, None)) is None:
                    return opened
                for step, score in twin.intermediate_values.items():
                    opened._trial.report(score, step)
                opened._trial.set_user_attr(SAME_AS, self.run_of(twin.number))
                is_complete = twin.state == TrialState.COMPLETE
                opened._close(twin.value if is_complete else None, twin.state)
        return None

    def _abandoned(self) -> OpenTrial | None:
        for trial in self._study.get_trials(states=(TrialState.RUNNING,)):
            if trial.user_attrs.get(WORKSPACE) != self.workspace:
                continue
            lock = self._lock_of(trial.number)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            if self._study.trials[trial.number].state == TrialState.RUNNING:  # none ended it meanwhile
                return self._opened(optuna.Trial(self._study, trial._trial_id), lock)
            lock.release()
        return None

    def _opened(self, trial: optuna.Trial, lock: filelock.FileLock | None = None) -> OpenTrial:
        is_new = lock is None
        if lock is None:
            lock = self._lock_of(trial.number)
            lock.acquire()
            trial.set_user_attr(WORKSPACE, self.workspace)
        # Values are a function of seed, number and the results so far, and equal in no two processes.
        seed = int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0])
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        values = {key: _suggest(trial, key, one) for key, one in self.space.items()}
        return OpenTrial(self.run_of(trial.number), values, is_new, trial, lock)

    def _lock_of(self, number: int) -> filelock.FileLock:
        return filelock.FileLock(FOLDER / f"{self.run_of(number)}.lock")

    def _count(self, *states: TrialState) -> int:
        """Return the number of trials in these states; a trial that a user has queued counts once it starts."""
        all_but_queued = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        return len(self._study.get_trials(deepcopy=False, states=states or all_but_queued))

    def counts(self) -> dict[str, int]:
        """Return how many trials finished, were pruned, failed and run."""
        return {
            "finished": self._count(TrialState.COMPLETE),
            "pruned": self._count(TrialState.PRUNED),
            "failed": self._count(TrialState.FAIL),
            "running": self._count(TrialState.RUNNING),
        }

    def known_runs(self) -> set[str]:
        """Return the names of the runs of all trials."""
        return {self.run_of(trial.number) for trial in self._study.get_trials(deepcopy=False)}

    def results(self) -> list[Result]:
        """Return the finished trials that have a run, the best first."""
        finished = [
            Result(self.run_of(one.number), one.value, one.intermediate_values.get(DISTILLED), one.params)
            for one in self._study.get_trials(states=(TrialState.COMPLETE,))
            if SAME_AS not in one.user_attrs and one.value is not None
        ]
        return sorted(finished, key=lambda one: -one.score)


def _opened_study(storage: str, name: str) -> optuna.Study:
    # SQLite has one writer at a time; the others wait.
    options = {"connect_args": {"timeout": SQLITE_WAIT_S}} if storage.startswith("sqlite") else {}
    pauses_s = list(PAUSES_S)
    while True:
        try:
            return optuna.create_study(
                storage=optuna.storages.RDBStorage(storage, engine_kwargs=options),
                study_name=name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(),
                load_if_exists=True,
            )
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError, RuntimeError):
            # Another machine makes the tables at this moment, and Optuna takes what it finds of them for an error.
            if not pauses_s:
                raise
            time.sleep(pauses_s.pop(0))


def _suggest(trial: optuna.Trial, key: str, one: Interval | Choice) -> Any:
    if isinstance(one, Choice):
        return trial.suggest_categorical(key, one.values)
    suggest: Callable[..., Any] = trial.suggest_int if isinstance(one.low, int) else trial.suggest_float
    # At the upper end Optuna gives a number of NumPy, which YAML does not take.
    return type(one.low)(suggest(key, one.low, one.high, log=one.log))
