"""Evaluate on the holdout during training, and save the prediction of one frame."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from segdistill.core.files import atomic_directory
from segdistill.data.prepared import PreparedData
from segdistill.nets.device import TorchPredictor, device_of
from segdistill.parallel import ranks
from segdistill.params.model import Params, TrainingParams
from segdistill.scoring.evaluate import Predictor, classes_of, evaluate, evenly_spaced
from segdistill.scoring.record import write_class_map

MAX_IMAGES = 40  # of one training: with more evaluations every second, third and so on saves one
IMAGES = "images"  # their folder, in that of the checkpoint


class HoldoutEvaluator:
    """Score the network of one training on the holdout, and save its class maps of the middle frame in `folder`.

    An image is a function of the network, so a training that is killed and resumed leaves the same ones. Files are
    named INDEX_truth.png and INDEX_step_STEP.png, by the frame's index in the holdout; step 0 is the network as given.
    """

    def __init__(self, params: Params, data: PreparedData, settings: TrainingParams, folder: Path) -> None:
        self.holdout, self.table, self.batch_size = data.holdout, data.table, params.evaluation.batch_size
        self.compute, self.settings, self.folder = device_of(params.compute), settings, folder
        self.shown = evenly_spaced(len(data.holdout), 1) if params.evaluation.images > 0 else []

    def save_start(self, net: nn.Module) -> None:
        """Save the prediction of `net` before its first step, and the truth."""
        self.save_given(TorchPredictor(net, self.compute))

    def save_given(self, predictor: Predictor) -> None:
        """Save the prediction of any model as step 0, and the truth; the first rank does."""
        for index in self.shown if ranks.is_first() else []:
            logits = predictor.logits(np.array(self.holdout.images[index : index + 1]))
            classes_HW = classes_of(logits, self.holdout.size_px)[0].cpu().numpy()
            write_class_map(self._path(index, "truth"), np.asarray(self.holdout.labels[index]), self.table)
            write_class_map(self._path(index, "step_000000"), classes_HW, self.table)

    def __call__(self, net: nn.Module, done: int) -> float | None:
        """Return the holdout mIoU of `net` after `done` steps; None where no class occurs."""
        shown = self.shown if saves_image(done, self.settings) else []
        predictor = TorchPredictor(net, self.compute)
        metrics, class_maps = evaluate(predictor, self.holdout, len(self.table), self.batch_size, keep=shown)
        for index, classes_HW in class_maps.items():
            write_class_map(self._path(index, f"step_{done:06d}"), classes_HW, self.table)
        return metrics["mean_iou"]

    def _path(self, index: int, what: str) -> Path:
        return self.folder / f"{index:05d}_{what}.png"


def saves_image(done: int, settings: TrainingParams) -> bool:
    """Return whether the evaluation after `done` steps saves an image: at most MAX_IMAGES do, and the last one does."""
    evaluations = math.ceil(settings.steps / settings.evaluate_every_steps)
    every_steps = settings.evaluate_every_steps * math.ceil(evaluations / MAX_IMAGES)
    return done == settings.steps or done % every_steps == 0


def keep_images(scratch: Path | None, out: Path, otherwise: Callable[[Path], None]) -> None:
    """Copy the images of the training in the folder `scratch` to `out`, atomically.

    Where nothing was trained, call `otherwise` with the folder to fill: DVC complains about empty outputs.
    """
    with atomic_directory(out) as temporary:
        if scratch is None:
            otherwise(temporary)
            return
        for image in sorted((scratch / IMAGES).glob("*.png")):
            shutil.copy2(image, temporary / image.name)  # with its time, by which MLflow shows how long a run took
