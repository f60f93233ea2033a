"""Bring rows into MLflow, each row, metric, point and image exactly once.

Files are the record and MLflow is a view of them: a failure here is a warning, and tracking again adds what is
missing. The hash of everything a run was computed from identifies its row, the step a point or an image.

Several machines may track one run at once, and an MLflow server has no lock for them. So all of them keep the same one
of the runs that they create, and write values and images that are equal down to their times and names: MLflow's
databases and its store of artifacts keep equal ones once.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import math
import os
import re
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.core.provenance import file_sha256, settings_hash
from segdistill.formats.curve import COLUMNS
from segdistill.params.model import Params
from segdistill.tracking.registry import update_champion
from segdistill.tracking.rows import CURVE, TEACHER, Row, StepImage, rows_on_disk
from segdistill.tracking.store import Store, cause, check_reachable, configure_mlflow, find_store, locked, within
from segdistill.tracking.view import CURRENT_TAG, experiment_tags

if TYPE_CHECKING:
    from mlflow.entities import Run

T = TypeVar("T")
RUN_TAG, ROW_TAG, FILES_TAG = "segdistill.run", "segdistill.row", "segdistill.files"
CREATED_TAG = "segdistill.created_ns"  # when a run was created, as 20 digits
LOSS = f"{CURVE}/loss"  # which every point has
ATTEMPTS = 3
# What MLflow says where another process was in the way: a server that starts, a writer of the same file, a machine that
# wrote the same param, or one that deleted the younger of two runs.
PASSING = ("is locked", "already exists", "unique constraint", "must be in the 'active' state")
POINTS_PER_CALL = 1000 // (len(COLUMNS) - 1)  # MLflow takes 1000 values; a point is never split between two calls
# How MLflow names the files of an image by step: KEY+step+STEP+..., with ~ for / in KEY. Earlier versions have % for +.
LOGGED_IMAGE = re.compile(r"images/(.+?)[+%]step[+%](\d+)[+%].+")
IMAGES_TAG = "mlflow.loggedImages"  # MLflow's page looks for images by step where it is True
FILES_PER_IMAGE = 2  # the image and a small copy of it
SMALL_PX = 256


def track(params: Params, metrics: Path, limit_s: float = 300.0, shows_progress: bool = False) -> bool:
    """Bring every run of `params` that `metrics` holds into MLflow, and update the champion once all are measured.

    Never raises: where the store cannot be used, log one warning. With `shows_progress`, draw a bar on a terminal.

    Returns:
        Whether everything is there now.
    """
    store = find_store(params.tracking.uri)
    shown = shows_progress and sys.stderr.isatty()

    def upsert(rows: Sequence[Row]) -> dict[str, Run]:
        experiment = Experiment(store, params.tracking.experiment)
        with Progress("MLflow", len(rows), unit="run") if shown else contextlib.nullcontext() as progress:
            return experiment.upsert(
                rows, {TEACHER, *params.students()}, progress.advance if progress else lambda: None
            )

    def work() -> None:
        rows = rows_on_disk(params, metrics)
        check_reachable(store)
        configure_mlflow()
        with locked(store, wait_s=limit_s / 2):
            runs = with_retries(lambda: upsert(rows))
            named = {row.run: (runs[row.key], row.params) for row in rows}
            with_retries(lambda: update_champion(connect(store), params, metrics, named))

    try:
        within(limit_s, work)
    except Exception as error:  # noqa: BLE001 - no failure of a view may end what is being viewed
        logger.warning(
            "MLflow at %s is not up to date (%s); the results are on disk, and segdistill track brings them in",
            *(store.name, cause(error, store)),
        )
        return False
    return True


def with_retries(work: Callable[[], T]) -> T:
    """Call `work`, again where another process that uses the store at the same time was in the way."""
    for attempt in range(ATTEMPTS):
        try:
            return work()
        except Exception as error:
            if attempt == ATTEMPTS - 1 or not any(words in str(error).lower() for words in PASSING):
                raise
            time.sleep(1 + attempt)
    raise AssertionError


def connect(store: Store):
    """Return an MLflow client of `store` that logs nothing by itself."""
    from mlflow import MlflowClient

    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=store.uri)


class Experiment:
    """The MLflow experiment of a sweep; made, or restored where a user deleted it."""

    def __init__(self, store: Store, name: str) -> None:
        if store.sqlite and not store.sqlite.exists():
            _create_sqlite(store, store.sqlite)
        self.client = connect(store)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            self.client.create_experiment(name, artifact_location=store.artifacts)
            found = self.client.get_experiment_by_name(name)
        elif found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        self.id = found.experiment_id
        for key, value in experiment_tags(self.id).items():
            if key not in found.tags:  # keep what a user wrote
                self.client.set_experiment_tag(self.id, key, value)

    def upsert(
        self, rows: Sequence[Row], names: Collection[str], advance: Callable[[], None] = lambda: None
    ) -> dict[str, Run]:
        """Bring in `rows`, and mark as old what is of none of `names`, the runs of params.yaml.

        Call `advance` after each row. Returns the MLflow runs by the keys of their rows.
        """
        runs = {row.key: with_retries(partial(self._upsert_row, row)) for row in rows}
        self.archive_stale({row.run: row.key for row in rows}, names)
        # Files last, because the store of artifacts may fail where the store of metrics works.
        for row in rows:
            self._upsert_step_images(row, runs[row.key])
            self._upsert_files(row, runs[row.key])
            advance()
        return runs

    def current(self) -> list[Run]:
        """Return the MLflow runs of the sweep as params.yaml describes it, the newest first."""
        return self._having(CURRENT_TAG, "true")

    def archive_stale(self, keys: dict[str, str], names: Collection[str]) -> None:
        """Mark as old what is of none of `names`, and what has another key than `keys` has for its run."""
        for run in self.current():
            name, key = run.data.tags.get(RUN_TAG, ""), run.data.tags.get(ROW_TAG)
            # Stores of earlier versions hold runs without a row key: the curves, which were runs of their own.
            if key is None or name not in names or keys.get(name, key) != key:
                self.client.set_tag(run.info.run_id, CURRENT_TAG, "false")

    def _having(self, tag: str, value: str) -> list[Run]:
        found, token = [], None
        while True:
            page = self.client.search_runs(
                [self.id], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time DESC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                return found

    def _find(self, row: Row) -> Run | None:
        """Return the MLflow run of `row`; where there are several, the oldest, and delete the others.

        A run is created twice by two machines, and by MLflow, which repeats a call whose answer was lost.
        """
        # By what never changes, so that all machines keep the same run: none of them deletes the first in this order.
        # Clocks may differ. Then the first may be one that another machine has not seen; its next write to a deleted
        # run fails and is tried again.
        same = sorted(
            self._having(ROW_TAG, row.key), key=lambda run: (run.data.tags.get(CREATED_TAG, ""), run.info.run_id)
        )
        for other in same[1:]:
            self.client.delete_run(other.info.run_id)
        return same[0] if same else None

    def _create(self, row: Row) -> Run:
        """Return the MLflow run of `row`, made here or by another machine at the same time."""
        tags = {RUN_TAG: row.run, ROW_TAG: row.key, CREATED_TAG: f"{time.time_ns():020d}"}
        with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
            tags["mlflow.user"] = getpass.getuser()
        made = self.client.create_run(self.id, start_time=_ms(row.started_s), tags=tags, run_name=row.run)
        # Two machines that both found nothing have both created a run. Whoever looks last sees both.
        return self._find(row) or made

    def _logged_losses(self, run: Run) -> dict[int, float]:
        return {point.step: point.value for point in self.client.get_metric_history(run.info.run_id, LOSS)}

    def _upsert_row(self, row: Row) -> Run:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        run = self._find(row) or self._create(row)
        logged = self._logged_losses(run)
        losses = {point.step: point.values[LOSS] for point in row.points}
        changed = any(not math.isclose(losses[step], logged[step]) for step in losses.keys() & logged)
        if changed or (row.is_finished and losses and logged.keys() - losses.keys()):
            # Trained again with another outcome, by other code or on another machine. Points cannot be deleted,
            # so replace the run: one curve and not two mixed.
            self.client.delete_run(run.info.run_id)
            run = self._create(row)
            logged = self._logged_losses(run)
        name, fingerprint = row.data
        if fingerprint and not (run.inputs and run.inputs.dataset_inputs):
            data = Dataset(name, fingerprint[:12], "local", '{"uri": "data/prepared"}')
            inputs = [DatasetInput(data, [InputTag("mlflow.data.context", "training")])]
            self.client.log_inputs(run.info.run_id, inputs)
        self._log_values(run, row)
        points = [point for point in row.points if point.step not in logged]
        for first in range(0, len(points), POINTS_PER_CALL):
            values = [
                Metric(name, value, _point_ms(run, point.step), point.step)
                for point in points[first : first + POINTS_PER_CALL]
                for name, value in point.values.items()
            ]
            self.client.log_batch(run.info.run_id, values)
        # SCHEDULED: part of it is done, and dvc repro continues it.
        status = "FINISHED" if row.is_finished else "RUNNING" if row.is_training else "SCHEDULED"
        if run.info.status != status and status == "FINISHED":
            self.client.set_terminated(run.info.run_id, status, end_time=_ms(row.ended_s))
        elif run.info.status != status:
            self.client.update_run(run.info.run_id, status)
        return run

    def _log_values(self, run: Run, row: Row) -> None:
        from mlflow.entities import Metric, Param, RunTag

        # The newest is the one that MLflow shows, so a changed value needs a later time than the first.
        first, now, has = run.info.start_time, _ms(time.time()), run.data
        metrics = [
            Metric(k, v, now if k in has.metrics else first, 0)
            for k, v in row.metrics.items()
            if has.metrics.get(k) != v
        ]
        # A param of MLflow cannot change; what the row's key covers does not.
        params = [Param(k, v) for k, v in row.params.items() if k not in has.params]
        tags = [RunTag(k, v) for k, v in (row.tags | {CURRENT_TAG: "true"}).items() if has.tags.get(k) != v]
        if metrics or params or tags:
            self.client.log_batch(run.info.run_id, metrics, params, tags)

    def _upsert_step_images(self, row: Row, run: Run) -> None:
        """Log the images that are not there, each at its step, so that the page can slide through them."""
        if not row.step_images:
            return
        paths = [file.path for file in self.client.list_artifacts(run.info.run_id, "images")]
        files = Counter((match[1], int(match[2])) for match in map(LOGGED_IMAGE.fullmatch, paths) if match)
        for image in row.step_images:
            if files[image.key.replace("/", "~"), image.step] < FILES_PER_IMAGE:
                self._log_step_image(run, image)
        if run.data.tags.get(IMAGES_TAG) != "True":
            self.client.set_tag(run.info.run_id, IMAGES_TAG, "True")

    def _log_step_image(self, run: Run, image: StepImage) -> None:
        """Log what MlflowClient.log_image does, under a name without its random number: repeated, it is there once."""
        whole = _stacked(image.path, image.truth)
        small = whole.copy()
        small.thumbnail((SMALL_PX, SMALL_PX))
        number = uuid.uuid5(uuid.NAMESPACE_OID, f"{image.key} {image.step}")
        name = f"{image.key.replace('/', '~')}+step+{image.step}+timestamp+{_point_ms(run, image.step)}+{number}"
        with tempfile.TemporaryDirectory() as folder:
            for pixels, ending in ((whole, ".png"), (small, "+compressed.webp")):
                path = Path(folder) / f"{name}{ending}"
                pixels.save(path)
                self.client.log_artifact(run.info.run_id, str(path), "images")

    def _upsert_files(self, row: Row, run: Run) -> None:
        if not row.files:
            return
        content = settings_hash([(folder, path.name, file_sha256(path)) for folder, path in row.files])
        # The tag alone does not say that they are still there: a user may have deleted the artifacts.
        if run.data.tags.get(FILES_TAG) == content:
            there = {file.path for file in self.client.list_artifacts(run.info.run_id)}
            if there >= {folder for folder, _ in row.files}:
                return
        for folder, path in row.files:
            self.client.log_artifact(run.info.run_id, str(path), folder)
        self.client.set_tag(run.info.run_id, FILES_TAG, content)


def _stacked(*paths: Path):
    """Return images as one: MLflow draws each in a square, of which a wide image would fill little."""
    from PIL import Image

    images = [Image.open(path).convert("RGB") for path in paths]
    gap_px = max(1, images[0].height // 32)
    whole = Image.new("RGB", (images[0].width, sum(image.height + gap_px for image in images) - gap_px), "white")
    for number, image in enumerate(images):
        whole.paste(image, (0, number * (image.height + gap_px)))
    return whole


def open_experiment(store: Store, name: str) -> Experiment:
    """Return the experiment `name` of a local store.

    Raises:
        UserError: MLflow cannot open the store.
    """
    configure_mlflow()
    try:
        check_reachable(store)
        with locked(store, wait_s=60):
            return with_retries(lambda: Experiment(store, name))
    except Exception as error:
        raise UserError(f"MLflow cannot open {store.name}: {cause(error, store)}") from None


def _point_ms(run: Run, step: int) -> int:
    """Return the time of a point in MLflow: the same on every machine, so that a point logged twice is there once."""
    return run.info.start_time + step


def _ms(time_s: float | None) -> int:
    """Return a time as MLflow keeps it; None is now."""
    return int(1000 * (time.time() if time_s is None else time_s))


def _create_sqlite(store: Store, path: Path) -> None:
    """Make an empty store whole or not at all: MLflow cannot open one whose making was cut short."""
    for left in path.parent.glob(f"{path.name}.*.part*"):  # with its journal
        left.unlink()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        connect(store._replace(uri=f"{store.uri}.{os.getpid()}.part")).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # a server was started meanwhile and has made it
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
