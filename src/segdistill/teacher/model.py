"""The teacher as one model: `teacher-check` writes it to `models/teacher`, other stages open it.

teacher.safetensors    a teacher that is one torch network, run once per image
teacher.json, 0.*, ... any other: an ensemble, how its members run, and the members in order, as safetensors or ONNX
folds.json, fold0, ... of a cross-fitted teacher: the fold of each train frame, and for each fold such a folder, of the
                       teacher that did not see its frames in training
val_classes.npz        its class maps of val

An ensemble has members of any kind, and each may run at several scales and on the flipped image. It averages the
softmax of each prediction, not the logits, as multi-scale and flipped evaluation does in segmentation: a member with
larger logits then counts for no more than others. The losses of the students need logits, so the mean is turned into
logits again: its logarithm, raised by the mean level (logsumexp) of the predictions. For a single prediction these are
its own logits.

Shapes: B batch, H/W image in pixels, C classes, h/w a grid of logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.core.errors import UserError
from segdistill.core.files import read_json, write_json
from segdistill.core.provenance import file_sha256
from segdistill.data.teacher_cache import ENSEMBLE, FOLDS, is_ensemble, teacher_sha256
from segdistill.formats.header import Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import shipped_parameters
from segdistill.nets.resize import resize_images, upsample
from segdistill.nets.weights import load_net, save_net
from segdistill.parallel import ranks
from segdistill.params.model import TeacherParams, is_onnx
from segdistill.paths import TEACHER_WEIGHTS

CELL_PX = 4  # of the grid on which predictions of different grids are averaged: the finest that our networks have


class TorchMember(NamedTuple):
    """A torch network of a teacher, with the header of its file."""

    net: nn.Module
    header: Header


class Teacher(NamedTuple):
    """An opened teacher: a Predictor of `scoring.evaluate`, and facts about it."""

    predict: EnsembleTeacher | TorchPredictor
    classes: int
    parameters: int | None  # None where an ONNX file is part of it
    description: str
    of_onnx_only: bool = False


def write_members(folder: Path, members: Sequence[TorchMember | Path], classes: int, teacher: TeacherParams) -> None:
    """Write the teacher made of `members`, torch networks and paths of ONNX files, into an empty folder."""
    if teacher.is_one_net:
        (member,) = members
        assert isinstance(member, TorchMember)
        save_net(folder / TEACHER_WEIGHTS, member.net, member.header)
        return
    rows = []
    for number, member in enumerate(members):
        file = folder / f"{number}{'.onnx' if isinstance(member, Path) else '.safetensors'}"
        if isinstance(member, Path):
            from segdistill.teacher.onnx_teacher import write_in_one_file

            write_in_one_file(member, file)
        else:
            save_net(file, member.net, member.header)
        given = {"given": member.name} if isinstance(member, Path) else {}  # the name in messages
        rows.append({"file": file.name, "sha256": file_sha256(file)} | given)
    how = teacher.model_dump(mode="json", include={"flip", "scales", "onnx_mean", "onnx_std"})
    write_json(folder / ENSEMBLE, {"described": teacher.described, "classes": classes, "members": rows} | how)


def open_teacher(folder: Path, compute: Compute) -> Teacher:
    """Open the teacher in `folder`; ONNX files run on the CPU, with the threads of `compute`.

    Raises:
        UserError: a file is missing, or is not the one that was written.
    """
    if not is_ensemble(folder):
        net, header = load_net(folder / TEACHER_WEIGHTS)
        return Teacher(TorchPredictor(net, compute), header.classes, shipped_parameters(net), header.arch)
    facts = read_json(folder / ENSEMBLE)
    members: list[Member] = []
    parameters: int | None = 0
    for row in facts["members"]:
        file = folder / row["file"]
        if not file.is_file() or file_sha256(file) != row["sha256"]:
            raise UserError(f"{file}: not the file that {ENSEMBLE} names; run: dvc repro teacher-check")
        if is_onnx(row["file"]):
            from segdistill.teacher.onnx_teacher import OnnxTeacher

            pixels = (facts["onnx_mean"], facts["onnx_std"])
            threads = ranks.share_of_threads(compute.threads)
            name = row.get("given")  # a teacher of an earlier build lacks it: messages then name its copy
            members.append(OnnxTeacher(file, facts["classes"], threads, *pixels, name=name))
            parameters = None
        else:
            net, _ = load_net(file)
            members.append(TorchPredictor(net, compute))
            parameters = None if parameters is None else parameters + shipped_parameters(net)
    predict = EnsembleTeacher(members, facts["flip"], facts["scales"], compute.device)
    of_onnx_only = all(is_onnx(row["file"]) for row in facts["members"])
    return Teacher(predict, facts["classes"], parameters, facts["described"], of_onnx_only)


def write_folds(
    folder: Path, members: Sequence[TorchMember], fold_of_frame: np.ndarray, classes: int, teacher: TeacherParams
) -> None:
    """Write the teachers of the folds, each run as the whole teacher is, and the fold of each train frame."""
    hashes = []
    for fold, member in enumerate(members):
        own = folder / f"fold{fold}"
        own.mkdir()
        write_members(own, [member], classes, teacher)
        hashes.append(teacher_sha256(own))
    write_json(folder / FOLDS, {"sha256": hashes, "fold_of_frame": fold_of_frame.tolist()})


WHOLE = -1  # the fold of a frame whose logits the teacher of all frames gives


class TrainFrameTeacher:
    """The teacher of train frames: that of the fold which did not see them, or else the one that is given.

    Attributes:
        cross_fit: the number of folds, and of the frames of each; None where the teacher is not cross-fitted.
    """

    def __init__(self, folder: Path, compute: Compute, whole: Teacher, frames: int) -> None:
        """Open the teachers of the folds in `folder`, where it has any.

        Raises:
            UserError: a file is missing or not the one that was written, or they are of other data.
        """
        self._whole: Member = whole.predict
        self.cross_fit: dict | None = None
        if not (folder / FOLDS).is_file():
            return
        facts = read_json(folder / FOLDS)
        self._fold_of_frame = np.array(facts["fold_of_frame"])
        if len(self._fold_of_frame) != frames:
            found = f"{len(self._fold_of_frame)} train frames, the data has {frames}"
            raise UserError(f"{folder / FOLDS}: has folds of {found}; run: dvc repro teacher-check")
        self._folds: list[Member] = []
        for fold, sha256 in enumerate(facts["sha256"]):
            own = folder / f"fold{fold}"
            if not own.is_dir() or teacher_sha256(own) != sha256:
                raise UserError(f"{own}: not the teacher that {FOLDS} names; run: dvc repro teacher-check")
            self._folds.append(open_teacher(own, compute).predict)
        in_a_fold = self._fold_of_frame[self._fold_of_frame != WHOLE]
        counts = np.bincount(in_a_fold, minlength=len(self._folds)).tolist()
        self.cross_fit = {"folds": len(self._folds), "frames": counts}

    def of(self, frames: np.ndarray) -> Member:
        """Return the teacher of images of the train frames `frames` (B,), one image of each."""
        if self.cross_fit is None:
            return self._whole
        return _TeacherByImage({WHOLE: self._whole, **dict(enumerate(self._folds))}, self._fold_of_frame[frames])


class _TeacherByImage:
    """Run on each image of a batch the teacher of its fold (B,)."""

    def __init__(self, teachers: Mapping[int, Member], fold_of_image: np.ndarray) -> None:
        self.teachers, self.fold_of_image = teachers, fold_of_image

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w) of uint8 images (B, H, W, 3)."""
        order = np.argsort(self.fold_of_image, kind="stable")
        folds = np.unique(self.fold_of_image).tolist()
        parts = [self.teachers[fold].logits(images_BHW3[self.fold_of_image == fold]) for fold in folds]
        return torch.cat(parts)[np.argsort(order)]


class Member(Protocol):
    """One network of an ensemble."""

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w), on its own grid, of uint8 images (B, H, W, 3)."""


class EnsembleTeacher:
    """Run the members as one Predictor; a single member that runs once keeps its own logits."""

    def __init__(self, members: Sequence[Member], flip: bool, scales: Sequence[float], device: torch.device) -> None:
        self.members, self.flip, self.scales, self.device = members, flip, scales, device

    @torch.inference_mode()
    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return the logits of the ensemble, float32 (B, C, h, w)."""
        predictions = len(self.members) * len(self.scales) * (1 + self.flip)
        if predictions == 1 and self.scales[0] == 1:
            return sliding_window_logits(self.members[0], images_BHW3).to(self.device)
        grid = _cells(images_BHW3)
        mean = SoftmaxMean()
        for scale in self.scales:
            scaled = resized(images_BHW3, scale)
            for member in self.members:
                for mirror in (False, True) if self.flip else (False,):
                    seen = np.ascontiguousarray(scaled[:, :, ::-1]) if mirror else scaled
                    logits = sliding_window_logits(member, seen).to(self.device)
                    logits = logits.flip(-1) if mirror else logits
                    mean.add(logits if tuple(logits.shape[-2:]) == grid else upsample(logits, grid))
        return mean.logits()


class SoftmaxMean:
    """Average the softmax of logits (B, C, h, w) that are added one after another."""

    _log_sum: Tensor
    _level: Tensor

    def __init__(self) -> None:
        self._count = 0

    def add(self, logits_BChw: Tensor) -> None:
        """Add the logits of one prediction."""
        level_B1hw = logits_BChw.logsumexp(1, keepdim=True)
        log_shares_BChw = logits_BChw - level_B1hw
        if self._count:
            log_shares_BChw, level_B1hw = torch.logaddexp(self._log_sum, log_shares_BChw), self._level + level_B1hw
        self._log_sum, self._level, self._count = log_shares_BChw, level_B1hw, self._count + 1

    def logits(self) -> Tensor:
        """Return the mean as logits."""
        return self._log_sum - float(np.log(self._count)) + self._level / self._count


def resized(images_BHW3: np.ndarray, scale: float) -> np.ndarray:
    """Return the uint8 images at another scale, each side rounded to whole pixels."""
    if scale == 1:
        return images_BHW3
    height_px, width_px = (max(1, round(side * scale)) for side in images_BHW3.shape[1:3])
    return resize_images(images_BHW3, (height_px, width_px))


def sliding_window_logits(member: Member, images_BHW3: np.ndarray) -> Tensor:
    """Return the logits of a member, window by window where it takes one size only and the images have another.

    Windows overlap where they do not divide the image, and their logits are averaged there, as is usual for a teacher.
    `predict.tiles` does not average: it shows class maps, and keeps the half of an overlap that sees more context.

    Raises:
        UserError: the images are smaller than the one size that the member takes.
    """
    size_px = getattr(member, "size_px", None)
    if size_px is None or size_px == images_BHW3.shape[1:3]:
        return member.logits(images_BHW3)
    found, name = list(images_BHW3.shape[1:3]), getattr(member, "name", type(member).__name__)
    if any(side % CELL_PX for side in size_px) or any(np.less(found, size_px)):
        raise UserError(
            f"teacher.checkpoint: {name}: takes images of {list(size_px)} pixels only, and got {found}; allowed "
            f"are sides of at least its own, which are to be multiples of {CELL_PX} (distill.crop_px, teacher.scales)"
        )
    rows, columns = (-side % CELL_PX for side in found)  # windows start and end on whole cells
    padded = np.pad(images_BHW3, ((0, 0), (0, rows), (0, columns), (0, 0)), "edge")
    (high, wide), window = _cells(padded), tuple(side // CELL_PX for side in size_px)
    sums, counts = torch.zeros(()), torch.zeros(())
    for top_px in _starts(padded.shape[1], size_px[0]):
        for left_px in _starts(padded.shape[2], size_px[1]):
            part = padded[:, top_px : top_px + size_px[0], left_px : left_px + size_px[1]]
            top, left = top_px // CELL_PX, left_px // CELL_PX
            around = (left, wide - left - window[1], top, high - top - window[0])
            sums = sums + F.pad(upsample(member.logits(np.ascontiguousarray(part)), window), around)
            counts = counts + F.pad(torch.ones(window), around)
    return sums / counts


def _starts(side_px: int, window_px: int) -> list[int]:
    """Return the starts of the windows that cover a side, evenly spaced on whole cells."""
    steps = -(-side_px // window_px) - 1
    room = (side_px - window_px) // CELL_PX
    return sorted({room * step // max(steps, 1) * CELL_PX for step in range(steps + 1)})


def _cells(images_BHW3: np.ndarray) -> tuple[int, int]:
    return tuple(-(-side // CELL_PX) for side in images_BHW3.shape[1:3])
