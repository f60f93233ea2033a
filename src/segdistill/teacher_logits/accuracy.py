"""Measure the teacher on what students learn from, and find the train frames whose labels it doubts.

The cache is built from the teacher's logits on every view, so their accuracy costs nothing but counting: one pixel of
each cell of the stored grid, the one in its middle, is compared with its label. Logits are those before they are
rounded for storage. Val is counted on the same grid, from the class maps of `teacher-check`, so that the two compare:
a teacher that is nearly always right on its train frames, and not on val, hands on little but the labels again.

    metrics/teacher_logits/KIND.json         accuracy on the views and on val
    metrics/teacher_logits/KIND/frames.csv   every train frame, those first whose labels the teacher doubts most
    metrics/teacher_logits/KIND/*.jpg, *.png the first of them: image, label, teacher, and where it is sure of another

Shapes: B crops, N frames, H/W pixels, h/w cells of the stored grid, C classes.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory, write_json
from segdistill.core.log import logger
from segdistill.data.prepared import PreparedData
from segdistill.data.teacher_cache import stored_grid, teacher_sha256
from segdistill.formats.classes import IGNORE, class_key
from segdistill.formats.thumbnails import WIDTH_PX, thumbnail
from segdistill.nets.resize import upsample
from segdistill.paths import TEACHER, VAL_CLASSES
from segdistill.scoring.confusion import Confusion
from segdistill.teacher.model import TrainFrameTeacher

FRAMES = "frames.csv"
SHOWN = 4  # frames with images: about 40 kB each, and one look tells whether the list is worth working through
SURE = 0.9  # probability from which the teacher is sure of a class
# A teacher has memorised its train frames where it errs so many times as often on val, and so much more of its pixels.
MEMORISED_TIMES, MEMORISED_SHARE = 3, 0.05


class TeacherAccuracy:
    """Count the teacher's hits and doubts while `teacher-logits` runs it."""

    def __init__(self, data: PreparedData, stride: int) -> None:
        self.data, self.stride = data, stride
        self.on_views, self.on_val = Confusion(len(data.table)), Confusion(len(data.table))
        frames = len(data.train)
        self.crops_N, self.cells_N, self.hits_N, self.sure_N = (np.zeros(frames, np.int64) for _ in range(4))
        self.confidence_N = np.zeros(frames)
        self._counts_of_shards = self.on_views.counts.clone()  # what of `on_views` is in files
        self.cross_fit: dict | None = None
        self._images: dict[str, bytes] = {}

    def read_val(self) -> None:
        """Count the teacher's class maps of val on the grid of the cache.

        Raises:
            UserError: the class maps are damaged, or of other data.
        """
        val, path = self.data.val, TEACHER / VAL_CLASSES
        grid = stored_grid(val.size_px, self.stride)
        try:
            with np.load(path) as archive:
                for index in range(len(val)):
                    both = archive[str(index)], np.asarray(val.labels[index])
                    self.on_val.add(*(torch.from_numpy(at_cells(classes[None], grid)) for classes in both))
        except Exception as error:  # a damaged archive surfaces as nearly any type
            cause = " ".join(str(error).split())[:100]
            raise UserError(f"{path}: no readable class maps of val ({cause}); run: dvc repro teacher-check") from None

    def add(self, frames: np.ndarray, labels_BHW: np.ndarray, logits_BhwC: np.ndarray) -> None:
        """Count crops of `frames` (B,) with labels uint8 and the teacher's logits float32."""
        labels_Bhw = torch.from_numpy(at_cells(labels_BHW, logits_BhwC.shape[1:3]))
        predicted_Bhw, sure_Bhw, confidence_Bhw = doubts(torch.from_numpy(logits_BhwC), labels_Bhw)
        self.on_views.add(predicted_Bhw, labels_Bhw)
        np.add.at(self.crops_N, frames, 1)
        for totals_N, cells_Bhw in (
            (self.cells_N, labels_Bhw != IGNORE),
            (self.hits_N, predicted_Bhw == labels_Bhw),
            (self.sure_N, sure_Bhw),
            (self.confidence_N, confidence_Bhw),
        ):
            np.add.at(totals_N, frames, cells_Bhw.sum((1, 2)).numpy())

    def save_shard(self, path: Path, frames: range) -> None:
        """Write what was added since the shard before, which has to be of `frames` alone."""
        arrays: dict[str, Any] = {"confusion": (self.on_views.counts - self._counts_of_shards).numpy()}
        arrays |= {name: totals[frames.start : frames.stop] for name, totals in self._by_frame().items()}
        np.savez(path, **arrays)
        self._counts_of_shards = self.on_views.counts.clone()

    def load_shard(self, path: Path, frames: range) -> None:
        """Add what `save_shard` wrote in a build that was stopped.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with np.load(path) as saved:
                for name, totals in self._by_frame().items():
                    totals[frames.start : frames.stop] = saved[name]
                self.on_views.counts += torch.from_numpy(saved["confusion"])
        except Exception as error:  # a damaged archive surfaces as nearly any type
            cause = " ".join(str(error).split())[:100]
            raise UserError(f"{path}: unreadable ({cause}); delete {path.parent}, to build it again") from None
        self._counts_of_shards = self.on_views.counts.clone()

    def _by_frame(self) -> dict[str, np.ndarray]:
        """Return the totals (N,) of each frame."""
        counts = {"crops": self.crops_N, "cells": self.cells_N, "hits": self.hits_N, "sure": self.sure_N}
        return counts | {"confidence": self.confidence_N}

    def ranked(self) -> list[int]:
        """Return the frames with labelled cells, those first on which the teacher is surest that the label is wrong."""
        cells_N = np.maximum(self.cells_N, 1)
        order = np.lexsort((-self.confidence_N / cells_N, -self.sure_N / cells_N))
        return [int(frame) for frame in order if self.cells_N[frame]]

    def finish(self, teacher: TrainFrameTeacher) -> None:
        """Run the teacher on the whole frames that are ranked first, and keep small images of them."""
        train, table, self.cross_fit = self.data.train, self.data.table, teacher.cross_fit
        for frame in self.ranked()[:SHOWN]:
            image, label = np.array(train.images[frame]), np.array(train.labels[frame])
            size_px = tuple(round(side * min(1, WIDTH_PX / label.shape[1])) for side in label.shape)
            logits_1Chw = teacher.of(np.array([frame])).logits(image[None])
            logits_HWC = upsample(logits_1Chw, size_px)[0].permute(1, 2, 0).cpu()
            predicted_HW, sure_HW, _ = doubts(logits_HWC, torch.from_numpy(at_cells(label[None], size_px)[0]))
            sure_of = torch.where(sure_HW, predicted_HW, IGNORE).numpy().astype(np.uint8)
            shown = {"image": image, "label": label, "teacher": predicted_HW.numpy(), "sure": sure_of}
            for kind, pixels in shown.items():
                name = f"{frame:05d}_{kind}.{'jpg' if kind == 'image' else 'png'}"
                self._images[name] = thumbnail(pixels, table)

    def write(self, metrics: Path, kind: str) -> None:
        """Write the metrics of `kind` into the folder `metrics`; warn of a teacher that has memorised its frames."""
        names, groups = self.data.train.names, self.data.frame_groups["train"]
        with atomic_directory(metrics / kind) as folder:
            with (folder / FRAMES).open("w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["frame", "name", "group", "cells", "accuracy", "sure_of_another", "confidence"])
                for frame in self.ranked():
                    cells = self.cells_N[frame]
                    shares = (total[frame] / cells for total in (self.hits_N, self.sure_N, self.confidence_N))
                    writer.writerow([frame, names[frame], groups[frame], cells, *(f"{share:.6f}" for share in shares)])
            for name, content in self._images.items():
                (folder / name).write_bytes(content)
        on_views, on_val = _scores(self.on_views), _scores(self.on_val)
        classes = [class_key(name) for name in self.data.table.names]
        by_class = {key: dict(zip(classes, on_views.pop(key), strict=True)) for key in ("class_iou", "class_acc")}
        facts: dict[str, Any] = {
            "kind": kind,
            "crops": int(self.crops_N.sum()),
            "cells": int(self.cells_N.sum()),
            **on_views,
            **by_class,
            "val": {key: on_val[key] for key in ("overall_acc", "mean_iou")},
            "teacher_sha256": teacher_sha256(TEACHER),
            "data_fingerprint": self.data.fingerprint,
        }
        if self.cross_fit is not None:
            facts["cross_fit"] = self.cross_fit
        sentence = memorised(on_views["overall_acc"], on_val["overall_acc"])
        if sentence:
            logger.warning("teacher-logits: %s", sentence)
        write_json(metrics / f"{kind}.json", facts | {"memorised": bool(sentence)})


def at_cells(labels_BHW: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Return the label in the middle of each cell of `grid`, uint8 (B, h, w)."""
    sides = zip(grid, labels_BHW.shape[1:], strict=True)
    rows, columns = ((2 * np.arange(cells) + 1) * pixels // (2 * cells) for cells, pixels in sides)
    return np.ascontiguousarray(labels_BHW[:, rows[:, None], columns])


def doubts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the predicted classes uint8, where the teacher is sure of another class, and its confidence in another.

    `logits` are (..., C), `labels` (...). The confidence is the probability of the predicted class where that is not
    the label's; it is 0 where it is, and on pixels without a label.
    """
    largest, predicted = logits.max(-1)
    other = (labels != IGNORE) & (predicted != labels)
    confidence = torch.zeros_like(largest)
    confidence[other] = (largest[other] - logits[other].logsumexp(-1)).exp()
    return predicted.to(torch.uint8), confidence > SURE, confidence


def memorised(on_views: float | None, on_val: float | None) -> str:
    """Return what to say of a teacher that is right on these shares of the pixels of views and val; "" for none."""
    if on_views is None or on_val is None or on_views - on_val < MEMORISED_SHARE:
        return ""
    if 1 - on_val < MEMORISED_TIMES * (1 - on_views):
        return ""
    return (
        f"the teacher has memorised its train frames: it is right on {on_views:.1%} of the pixels that students learn "
        f"from, and on {on_val:.1%} of those of val; there it has little to teach but the labels"
    )


def _scores(confusion: Confusion) -> dict:
    """Return the metrics of a confusion matrix, and class_acc, the share of each class that is right."""
    both = zip(confusion.counts.diagonal().tolist(), confusion.counts.sum(1).tolist(), strict=True)
    shares = [hits / truth if truth else None for hits, truth in both]
    return confusion.metrics() | {"class_acc": shares}
