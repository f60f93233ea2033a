"""What a training is watched by: its mIoU on the holdout, and what it makes of one frame there, step after step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from segdistill.base.class_table import ClassTable
from segdistill.base.files import atomic_directory
from segdistill.base.params import TrainingParams
from segdistill.frames.dataset import Split
from segdistill.nets.compute import Compute
from segdistill.scoring.class_maps import write_class_map
from segdistill.scoring.evaluate import Predictor, TorchPredictor, evaluate, spread
from segdistill.training.follower import PICTURES

MOST_PICTURES = 40  # of one training: of more evaluations than these, every second, third and so on is kept


class Watch:
    """Scores the net of one training on the holdout and keeps its class maps of the middle frame in `folder`.

    A picture is a function of the net, so a training that is killed and goes on leaves the same ones. Files are named
    INDEX_truth.png and INDEX_step_STEP.png, by the frame's index in the holdout; step 0 is the net as it was given.

    Args:
        pictured: whether pictures are kept at all.
    """

    def __init__(
        self,
        holdout: Split,
        table: ClassTable,
        batch_size: int,
        compute: Compute,
        settings: TrainingParams,
        folder: Path,
        pictured: bool,
    ) -> None:
        self.holdout, self.table, self.batch_size, self.compute = holdout, table, batch_size, compute
        self.settings, self.folder = settings, folder
        self.shown = spread(len(holdout), 1) if pictured else []

    def picture_start(self, net: nn.Module) -> None:
        """Keep what `net` makes of the frame before its first step, beside the truth."""
        self.picture_given(TorchPredictor(net, self.compute))

    def picture_given(self, predict: Predictor) -> None:
        """The same of anything that predicts."""
        for index in self.shown:
            classes_1HW = predict(np.array(self.holdout.images[index : index + 1]))[1]
            write_class_map(self._path(index, "truth"), np.asarray(self.holdout.labels[index]), self.table)
            write_class_map(self._path(index, _step(0)), classes_1HW[0].cpu().numpy(), self.table)

    def __call__(self, net: nn.Module, done: int) -> float | None:
        """The holdout mIoU of `net` after `done` steps; None where no class occurs."""
        shown = self.shown if is_pictured(done, self.settings) else []
        predictor = TorchPredictor(net, self.compute)
        figures, class_maps = evaluate(predictor, self.holdout, len(self.table), self.batch_size, keep=shown)
        for index, classes_HW in class_maps.items():
            write_class_map(self._path(index, _step(done)), classes_HW, self.table)
        return figures["mean_iou"]

    def _path(self, index: int, what: str) -> Path:
        return self.folder / f"{index:05d}_{what}.png"


def _step(done: int) -> str:
    return f"step_{done:06d}"


def is_pictured(done: int, settings: TrainingParams) -> bool:
    """Whether the evaluation after `done` steps leaves a picture: MOST_PICTURES do at most, and the last one always."""
    evaluations = math.ceil(settings.steps / settings.evaluate_every_steps)
    every_steps = settings.evaluate_every_steps * math.ceil(evaluations / MOST_PICTURES)
    return done == settings.steps or done % every_steps == 0


def keep_pictures(scratch: Path | None, out: Path, otherwise: Callable[[Path], None]) -> None:
    """Copy the pictures of the training in the folder `scratch` to `out`, atomically.

    Where nothing was trained, `otherwise` is called with the folder to fill: DVC complains about empty outputs.
    """
    with atomic_directory(out) as temporary:
        if scratch is None:
            otherwise(temporary)
            return
        for picture in sorted((scratch / PICTURES).glob("*.png")):
            shutil.copyfile(picture, temporary / picture.name)
