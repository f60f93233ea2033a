"""Follow a sweep: bring new points, images and metrics into MLflow while trainings run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import filelock

from segdistill.core.files import read_json
from segdistill.core.log import logger
from segdistill.params.model import Params
from segdistill.params.read import load_params
from segdistill.paths import METRICS, PARAMS, PREPARED, SCRATCH
from segdistill.tracking.mlflow import Experiment, with_retries
from segdistill.tracking.rows import TEACHER, Row, phases, row_of, rows_on_disk, with_phase
from segdistill.tracking.store import Store, cause, check_reachable, configure_mlflow, find_store, locked
from segdistill.training.checkpoint import FOLD_TRAININGS, stop_requests

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

EVERY_S = 3.0
POLL_S = 0.2  # between two looks for a signal
LOCK_WAIT_S = 30.0
SYSTEM_METRICS_EVERY_S = 10.0


class RunningTraining(NamedTuple):
    """A training that holds its scratch folder now: the run (or teacher) and the phase that it trains."""

    name: str
    phase: str
    folder: Path


class Watcher:
    """Bring what changed since the last call into MLflow.

    A training is of the params that were in force when it began: a row is worked out once for each scratch folder, and
    not at all where params.yaml is newer than the training.
    """

    def __init__(self) -> None:
        self._signature: object = None
        self._done: dict[str, Row] = {}  # what MLflow has, by key of the row
        self._run_ids: dict[str, str] = {}  # of MLflow, by key of the row
        self._bases: dict[Path, Row | None] = {}  # rows of running trainings without points, by scratch folder
        self._monitors: dict[str, SystemMetricsMonitor] = {}  # by MLflow run
        self._warned = ""

    def update(self) -> None:
        """Bring in what is new; where that fails, log one warning for as long as the cause is the same."""
        store: Store | None = None
        try:
            running = running_trainings(SCRATCH)
            signature = (running, _stat_all())
            if signature == self._signature:
                return
            params = load_params()
            store = find_store(params.tracking.uri)
            check_reachable(store)
            configure_mlflow()
            self._upsert(store, params, running)
        except FileNotFoundError:  # a stage deletes its outputs when it starts; the next round sees what is there
            return
        except Exception as error:  # noqa: BLE001 - the next round tries again
            message = str(error) if store is None else f"MLflow at {store.name}: {cause(error, store)}"
            if message != self._warned:
                logger.warning("%s; trying again every %.0f s", message, EVERY_S)
            self._warned = message
            return
        self._warned, self._signature = "", signature

    def stop(self) -> None:
        """End the monitors of system metrics."""
        for monitor in self._monitors.values():
            monitor.finish()
        self._monitors.clear()

    def _upsert(self, store: Store, params: Params, running: list[RunningTraining]) -> None:
        by_name = {training.name: training for training in running}
        rows = [row for row in rows_on_disk(params, METRICS) if row.run not in by_name]
        rows += [row for training in running if (row := self._running_row(params, training))]
        keys = {row.key for row in rows}
        stopped = [row for row in self._done.values() if row.is_training and row.key not in keys]
        rows += [row._replace(is_training=False) for row in stopped]
        changed = [row for row in rows if self._done.get(row.key) != row]
        if changed:
            with locked(store, LOCK_WAIT_S):
                experiment = Experiment(store, params.tracking.experiment)
                runs = with_retries(lambda: experiment.upsert(changed, {TEACHER, *params.students()}))
            self._done |= {row.key: row for row in changed}
            self._run_ids |= {key: run.info.run_id for key, run in runs.items()}
        if params.tracking.system_metrics:
            self._monitor(store, {self._run_ids[row.key] for row in rows if row.is_training})

    def _running_row(self, params: Params, training: RunningTraining) -> Row | None:
        """Return the row of a running training, with what the phases before it and itself have written so far."""
        if training.folder not in self._bases:
            self._bases[training.folder] = _base(params, training)
        row = self._bases[training.folder]
        if row is None:
            return None
        folder, offset_steps = training.folder, 0
        if training.name != TEACHER:
            offset_steps = phases(params, training.name)[training.phase]
            if training.phase == "finetune":
                done = METRICS / "runs" / training.name
                row = with_phase(row, done / "distill_curve.csv", done / "distill_images")
        return with_phase(row, folder / "curve.csv", folder / "images", offset_steps)._replace(is_training=True)

    def _monitor(self, store: Store, run_ids: set[str]) -> None:
        """Have MLflow record the metrics of this machine for the runs that train, and no longer for the others."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        for run_id in self._monitors.keys() - run_ids:
            self._monitors.pop(run_id).finish()
        for run_id in run_ids - self._monitors.keys():
            self._monitors[run_id] = SystemMetricsMonitor(
                run_id, SYSTEM_METRICS_EVERY_S, resume_logging=True, tracking_uri=store.uri
            )
            self._monitors[run_id].start()


def watch() -> None:
    """Follow the sweep in the current folder until SIGINT or SIGTERM comes, and for the rest of the running update."""
    watcher = Watcher()
    # Not by KeyboardInterrupt: Python drops one that is raised in a weak reference's callback, as those of SQLAlchemy.
    with stop_requests() as stops:
        try:
            while not stops:
                watcher.update()
                until_s = time.monotonic() + EVERY_S
                while not stops and time.monotonic() < until_s:
                    time.sleep(POLL_S)
        finally:
            watcher.stop()


def running_trainings(scratch: Path) -> list[RunningTraining]:
    """Return the trainings that hold their lock now, by the folders scratch/teacher/KEY and scratch/PHASE/RUN/KEY.

    The further trainings of a cross-fitted teacher have no row of their own.
    """
    found = []
    for lock in sorted(scratch.glob("**/lock")):
        if lock.parent.parent == scratch / FOLD_TRAININGS:
            continue
        try:
            with filelock.FileLock(lock, timeout=0):
                continue
        except filelock.Timeout:
            phase, name = lock.parent.relative_to(scratch).parts[0], lock.parent.name
            folders = [curve.parent for curve in lock.parent.glob("*/curve.csv")]
            found += [RunningTraining(name, phase, folder) for folder in folders[:1]]
    return found


def _base(params: Params, training: RunningTraining) -> Row | None:
    """Return the row of a running training without its points; None where params.yaml is newer than the training."""
    # A training that continues writes the truth again, and appends to its curve.
    files = list(training.folder.glob("images/*_truth.png")) or [training.folder / "curve.csv"]
    began_s = min(path.stat().st_mtime for path in files)
    if training.name not in {TEACHER, *params.students()} or PARAMS.stat().st_mtime > began_s:
        logger.info(
            "%s/%s: params.yaml was edited after this training began; MLflow gets its curve when the training is done",
            *(training.phase, training.name),
        )
        return None
    return row_of(params, training.name, read_json(PREPARED / "index.json")["fingerprint"])


def _stat_all() -> list[tuple[str, int, int]]:
    """Return the names, times and sizes of all files that rows are read from."""
    found = []
    for path in (PARAMS, *METRICS.rglob("*"), *SCRATCH.rglob("*")):
        try:
            stat = path.stat()
        except FileNotFoundError:  # deleted by the stage that is running
            continue
        if path.name != "lock":
            found.append((str(path), stat.st_mtime_ns, stat.st_size))
    return sorted(found)
