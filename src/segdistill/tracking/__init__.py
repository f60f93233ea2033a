"""Every run as a row in MLflow, brought in from the files under metrics/. The only importer of mlflow.

Files are the record and MLflow is a view of them, so whatever goes wrong here is a warning, and tracking again adds
what is missing: a row is found by the hash of everything its run was computed from, a point by its step.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdistill.core.progress import Progress
from segdistill.core.provenance import file_sha256, settings_hash
from segdistill.params.model import Params
from segdistill.tracking.curve import CURRENT_TAG, CURVE_TAG, PICTURES_TAG, ROW_TAG, RUN_TAG, Curve, now_ms
from segdistill.tracking.registered import champion_on_disk, register
from segdistill.tracking.rows import TEACHER, Row, curve_points, read_step_pictures, rows_on_disk
from segdistill.tracking.store import Store, cause, check_reachable, find_store, locked, quiet_and_patient_for, within
from segdistill.tracking.view import experiment_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

ATTEMPTS = 3


def track(params: Params, metrics: Path, limit_s: float = 300.0, shown: bool = False) -> bool:
    """Bring every run of `params` that `metrics` holds into MLflow, each row, figure and point exactly once.

    When all runs are measured, the champion is registered as well. Never raises: where the store cannot be used, one
    line on stderr says so. With `shown`, a bar does while somebody watches.

    Returns:
        Whether all of it is there now.
    """
    store = find_store(params.tracking.uri)

    def bring_in() -> None:
        rows = rows_on_disk(params, metrics)
        check_reachable(store)
        quiet_and_patient_for()
        with locked(store, wait_s=limit_s / 2):
            _with_patience(lambda: _bring_in(store, params, metrics, rows, shown))

    return told_as_warning(store, lambda: within(limit_s, bring_in))


def told_as_warning(store: Store, work: Callable[[], None]) -> bool:
    """Do `work`; where it fails, say so in one line without passwords. Returns whether it succeeded."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - no failure of a view may end what is being viewed
        print(
            f"warning: MLflow at {store.name} is not up to date ({cause(error, store)}); "
            "the results are on disk, and segdistill track brings them in",
            file=sys.stderr,
        )
        return False
    return True


def _with_patience(work: Callable[[], None]) -> None:
    """Try again where an MLflow server that starts or writes beside us was in the way; nothing is brought in twice."""
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except Exception as error:
            if attempt == ATTEMPTS - 1 or not any(w in str(error) for w in ("is locked", "already exists")):
                raise
            time.sleep(1 + attempt)
    return None


def _bring_in(store: Store, params: Params, metrics: Path, rows: Sequence[Row], shown: bool) -> None:
    experiment = Experiment(store, params.tracking.experiment)
    seen = Progress("MLflow", 2 * len(rows), unit="step") if shown and sys.stderr.isatty() else None
    with seen or contextlib.nullcontext():
        runs = _bring_in_rows(experiment, params, rows, seen.advance if seen else lambda: None)
    champion = champion_on_disk(params, metrics)
    for row in rows:
        if champion is not None and row.run == champion.file.run:
            register(experiment.client, champion, runs[row.key], row.params)


def _bring_in_rows(experiment: Experiment, params: Params, rows: Sequence[Row], advance: Callable) -> dict[str, Run]:
    """Bring in all but the champion; the runs by key. `advance` is called twice for each row."""
    runs, curves = {}, {row.key: [] for row in rows}
    for row in rows:
        known = experiment.known(row.run)
        runs[row.key] = experiment.bring_in(row, known)
        for phase, path in row.curves.items():
            curve = experiment.curve(row, phase, runs[row.key], known)
            curve.bring_in(curve_points(path), whole=True)
            curve.end("FINISHED")
            curves[row.key].append((curve, row.step_pictures[phase]))
        advance()
    experiment.archive_stale({TEACHER, *params.runs})
    # Last, because a store of pictures may fail where the store of figures works.
    for row in rows:
        experiment.bring_in_pictures(row, runs[row.key])
        for curve, folder in curves[row.key]:
            curve.bring_in_pictures(read_step_pictures(folder))
        advance()
    return runs


class Experiment:
    """The MLflow experiment of the sweep, with the view of it that its page offers."""

    def __init__(self, store: Store, name: str) -> None:
        if store.sqlite and not store.sqlite.exists():
            _create_sqlite(store.sqlite)
        self.client = _client(store.uri)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            self.client.create_experiment(name, artifact_location=store.artifacts)
            found = self.client.get_experiment_by_name(name)
        elif found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.id = found.experiment_id
        for key, value in experiment_tags(self.id).items():
            if key not in found.tags:  # what a user made of it stays
                self.client.set_experiment_tag(self.id, key, value)

    def known(self, run: str) -> dict[str, Run]:
        """The rows and curves of `run` that are there, by key."""
        found: dict[str, list[Run]] = {}
        for one in self._having(RUN_TAG, run):
            key = one.data.tags.get(ROW_TAG) or one.data.tags.get(CURVE_TAG)
            found |= {key: [*found.get(key, ()), one]} if key else {}
        return {key: self._only_one(same) for key, same in found.items()}

    def _having(self, tag: str, value: str) -> list[Run]:
        """All runs and curves whose `tag` is `value`, the newest first."""
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self.id], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time DESC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _only_one(self, same: list[Run]) -> Run:
        """The fullest of the runs of one key; the others go. A call whose answer was lost is made again, by MLflow."""
        kept, *others = sorted(same, key=lambda run: -len(run.data.metrics) - len(run.data.params))
        for other in others:
            self.client.delete_run(other.info.run_id)
        return kept

    def current(self) -> tuple[list[Run], list[Run]]:
        """(rows, curves) of the sweep as params.yaml describes it, the newest first."""
        found = self._having(CURRENT_TAG, "true")
        return [one for one in found if ROW_TAG in one.data.tags], [one for one in found if CURVE_TAG in one.data.tags]

    def archive_stale(self, runs: Collection[str]) -> None:
        """Mark what is of none of `runs` as old: the sweep has lost them, or they have other names now."""
        for one in self._having(CURRENT_TAG, "true"):
            if one.data.tags.get(RUN_TAG) not in runs:
                self.client.set_tag(one.info.run_id, CURRENT_TAG, "false")

    def create(self, name: str, tags: dict[str, str]) -> Run:
        """A new run of `name`."""
        with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
            tags = tags | {"mlflow.user": getpass.getuser()}
        return self.client.create_run(self.id, tags=tags, run_name=name)

    def bring_in(self, row: Row, known: dict[str, Run]) -> Run:
        """The run of `row`, made if it is not there, with all that is new; what is not of this row is marked as old."""
        run = known.get(row.key)
        if run is None:
            run = self.create(row.run, {RUN_TAG: row.run, ROW_TAG: row.key})
        if not (run.inputs and run.inputs.dataset_inputs):
            self._add_data(run, row)
        self._update(run, row.metrics, row.params, row.tags | {CURRENT_TAG: "true"})
        for key, other in known.items():
            current = "true" if key.split("/")[0] == row.key else "false"
            if other.data.tags.get(CURRENT_TAG) != current:
                self.client.set_tag(other.info.run_id, CURRENT_TAG, current)
        if row.finished and run.info.status != "FINISHED":
            self.client.set_terminated(run.info.run_id, "FINISHED")
        return run

    def _update(self, run: Run, metrics: dict, params: dict, tags: dict) -> None:
        from mlflow.entities import Metric, Param, RunTag

        now = now_ms()
        has = run.data
        new_metrics = [Metric(k, v, now, 0) for k, v in metrics.items() if has.metrics.get(k) != v]
        # A param of MLflow cannot change; what the row's key covers does not.
        new_params = [Param(k, v) for k, v in params.items() if k not in has.params]
        new_tags = [RunTag(k, v) for k, v in tags.items() if has.tags.get(k) != v]
        if new_metrics or new_params or new_tags:
            self.client.log_batch(run.info.run_id, new_metrics, new_params, new_tags)

    def _add_data(self, run: Run, row: Row) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, fingerprint = row.data
        if fingerprint:
            data = Dataset(name, fingerprint[:12], "local", '{"uri": "data/prepared"}')
            used_for = InputTag("mlflow.data.context", "training")
            self.client.log_inputs(run.info.run_id, [DatasetInput(data, [used_for])])

    def curve(self, row: Row, phase: str, parent: Run, known: dict[str, Run]) -> Curve:
        """The curve of `phase` of `row`, made if it is not there."""
        return Curve(self, row, phase, parent.info.run_id, known)

    def bring_in_pictures(self, row: Row, run: Run) -> None:
        """Put the pictures of `row` under pictures/, unless these very ones are there."""
        content = settings_hash([(path.name, file_sha256(path)) for path in row.pictures])
        if not row.pictures or run.data.tags.get(PICTURES_TAG) == content:
            return
        for path in row.pictures:
            self.client.log_artifact(run.info.run_id, str(path), "pictures")
        self.client.set_tag(run.info.run_id, PICTURES_TAG, content)


def _client(uri: str):
    import logging

    from mlflow import MlflowClient

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what goes wrong is told once, by us
    return MlflowClient(tracking_uri=uri)


def _create_sqlite(path: Path) -> None:
    """Make an empty store whole or not at all: MLflow cannot open one whose making was cut short."""
    for left in path.parent.glob(f"{path.name}.*.part*"):  # with its journal
        left.unlink()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _client(f"sqlite:///{temporary}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # a server was started meanwhile and has made it
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
