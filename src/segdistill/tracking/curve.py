"""The curve of one phase of a row in MLflow: its points, and pictures of what the net makes of one frame by step."""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segdistill.core.provenance import file_sha256, settings_hash
from segdistill.tracking.notes import curve_note
from segdistill.tracking.rows import COLOUR_TAG, CURVES, Point, Row, StepPicture
from segdistill.tracking.view import lighter

if TYPE_CHECKING:
    from mlflow.entities import Run

RUN_TAG, ROW_TAG, CURVE_TAG = "segdistill.run", "segdistill.row", "segdistill.curve"
CURRENT_TAG, PICTURES_TAG = "segdistill.current", "segdistill.pictures"
NOTE_TAG, PARENT_TAG = "mlflow.note.content", "mlflow.parentRunId"
POINTS_PER_CALL = 1000 // len(CURVES)  # MLflow takes 1000 values; a point is never split between two calls
# How MLflow 3.17 names the two files of a picture by step, of its own size and small.
LOGGED_PICTURE = re.compile(r"images/(.+)\+step\+(\d+)\+timestamp\+.+\.(png|webp)")
LOGGED_TAG = "mlflow.loggedImages"  # its page looks for pictures only where this is set


def now_ms() -> int:
    """The time as MLflow keeps it."""
    return int(time.time() * 1000)


def _write_both_sizes(picture: StepPicture, folder: Path) -> None:
    """Write what MLflow's log_image would upload, under names that are the same each time.

    Its own hold the time and a random number: where only one of the two arrived, both would come again beside it.
    """
    from mlflow.tracking.multimedia import compress_image_size
    from PIL import Image

    name = f"{picture.name}+step+{picture.step}+timestamp+0+{file_sha256(picture.path)[:32]}"
    with Image.open(picture.path) as image:
        shown = image.convert("RGB")
    shown.save(folder / f"{name}.png")
    compress_image_size(shown).save(folder / f"{name}+compressed.webp")


class Curve:
    """The curve of one phase of a row, as a run of its own below it: steps of two phases do not mix.

    Args:
        experiment: the Experiment that it lies in.
        known: the runs that are there, by key.
    """

    def __init__(self, experiment, row: Row, phase: str, parent_id: str, known: dict[str, Run]) -> None:
        self.experiment, self.name, self.key = experiment, f"{row.run}/{phase}", f"{row.key}/{phase}"
        tags = {RUN_TAG: row.run, CURVE_TAG: self.key, CURRENT_TAG: "true", NOTE_TAG: curve_note(row.run, phase)}
        colour = row.tags[COLOUR_TAG]
        shown = {PARENT_TAG: parent_id, COLOUR_TAG: lighter(colour) if phase == "finetune" else colour}
        self._tags = tags | shown
        found = known.get(self.key)
        self._start(found or experiment.create(self.name, self._tags))
        if found:
            history = experiment.client.get_metric_history(self.run_id, "loss")
            self._logged = {point.step: point.value for point in history}
            self._samples = len(experiment.client.get_metric_history(self.run_id, "system/cpu_utilization_percentage"))
            self._pictured = found.data.tags.get(PICTURES_TAG, "")
            for name in (PARENT_TAG, NOTE_TAG, COLOUR_TAG):
                if found.data.tags.get(name) != self._tags[name]:
                    experiment.client.set_tag(self.run_id, name, self._tags[name])

    def _start(self, run: Run) -> None:
        self.run_id, self._status, self._logged, self._pictured = run.info.run_id, run.info.status, {}, ""
        self._samples = 0

    def bring_in(self, points: Sequence[Point], whole: bool) -> None:
        """Log the points that are not there; with `whole`, what is there beside them is of an outdated training."""
        from mlflow.entities import Metric

        losses = {point.step: point.values["loss"] for point in points}
        if any(not math.isclose(losses[step], self._logged[step]) for step in losses.keys() & self._logged) or (
            whole and self._logged.keys() - losses.keys()
        ):
            # Trained again with another outcome, on other code or another machine: one curve, not two mixed.
            self.experiment.client.delete_run(self.run_id)
            self._start(self.experiment.create(self.name, self._tags))
        missing = [point for point in points if point.step not in self._logged]
        now = now_ms()
        for first in range(0, len(missing), POINTS_PER_CALL):
            batch = missing[first : first + POINTS_PER_CALL]
            values = [Metric(name, value, now, point.step) for point in batch for name, value in point.values.items()]
            self.experiment.client.log_batch(self.run_id, values)
            self._logged |= {point.step: point.values["loss"] for point in batch}

    def bring_in_pictures(self, pictures: Sequence[StepPicture]) -> None:
        """Log the pictures that are not there, each at its step, so that the page can slide through them."""
        content = settings_hash([(picture.path.name, file_sha256(picture.path)) for picture in pictures])
        if not pictures or self._pictured == content:
            return
        client = self.experiment.client
        paths = [file.path for file in client.list_artifacts(self.run_id, "images")]
        logged = {(match[1], int(match[2]), match[3]) for match in map(LOGGED_PICTURE.fullmatch, paths) if match}
        for picture in pictures:
            if not {(picture.name, picture.step, kind) for kind in ("png", "webp")} <= logged:
                with tempfile.TemporaryDirectory() as folder:
                    _write_both_sizes(picture, Path(folder))
                    client.log_artifacts(self.run_id, folder, "images")
        client.set_tag(self.run_id, LOGGED_TAG, "True")
        client.set_tag(self.run_id, PICTURES_TAG, content)
        self._pictured = content

    def log_system_metrics(self, samples: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Log samples of the machine, (time in ms, figures by name); their step is their number, as MLflow counts."""
        from mlflow.entities import Metric

        for timestamp_ms, figures in samples:
            values = [Metric(name, value, timestamp_ms, self._samples) for name, value in figures.items()]
            self.experiment.client.log_batch(self.run_id, values)
            self._samples += 1

    def end(self, status: str) -> None:
        """Say that no points are to come; RUNNING says that some are."""
        if self._status == status:
            return
        if status == "RUNNING":
            self.experiment.client.update_run(self.run_id, status)
        else:
            self.experiment.client.set_terminated(self.run_id, status)
        self._status = status
