"""The teacher's logits, computed once: what they belong to, and refused here when they belong to something else.

A student learns from one folder, `data/teacher_logits/KIND`:

    views   logits.npy (N, K, h, w, C): the teacher on K crop views of each of N train frames, or on those of them that
            some trainings draw
    frame   logits.npy (N, Hs, Ws, C): the teacher on whole frames, to be cropped (for comparison)
    online  teacher.safetensors: the teacher itself, to be run in every step (for comparison)

Each holds `manifest.json` (what it was made from) and `val_classes.npz` (the teacher's class maps of val, to measure
agreement by). `teacher_logits` builds it; `stored_logits` tells how logits lie on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from segdistill.base.errors import InputError
from segdistill.base.files import read_json
from segdistill.base.params import DrawnByParams
from segdistill.frames.dataset import Split
from segdistill.frames.rng import Batches, view_origins
from segdistill.frames.transforms import MEAN, STD
from segdistill.logits.stored_logits import StoredLogits
from segdistill.nets.checkpoint import load_net
from segdistill.nets.compute import Compute
from segdistill.nets.resize import upsample
from segdistill.provenance import file_sha256
from segdistill.scoring.class_maps import ClassMapArchive

FOLDER, TEACHER = Path("data/teacher_logits"), Path("models/teacher")
VAL_CLASSES, WEIGHTS, MANIFEST = "val_classes.npz", "teacher.safetensors", "manifest.json"
COMPOSITE = "teacher.json"  # of a teacher that is more than one torch network (see teacher_folder)


def geometry(split: Split, fingerprint: str, seed: int, crop_px: tuple[int, int], views: int, stride: int) -> dict:
    """What the views of a data set are a function of; a manifest that says otherwise is refused."""
    return {
        "data_fingerprint": fingerprint,
        "frames": len(split),
        "frame_px": list(split.size_px),
        "crop_px": list(crop_px),
        "views": views,
        "stride": stride,
        "seed": seed,
        "normalisation": {"mean": list(MEAN), "std": list(STD)},
    }


def is_composite(folder: Path) -> bool:
    """Is the teacher in `folder` more than one torch network that is asked once?"""
    return (folder / COMPOSITE).is_file()


def teacher_sha256(folder: Path) -> str:
    """Hex SHA-256 of all that the predictions of the teacher in `folder` are a function of."""
    return file_sha256(folder / (COMPOSITE if is_composite(folder) else WEIGHTS))


def origins_of(facts: dict) -> np.ndarray:
    """Top-left corners int64 (N, K, 2) in pixels of the views that `geometry` describes."""
    return view_origins(
        facts["seed"], facts["frames"], facts["views"], facts["frame_px"], facts["crop_px"], facts["stride"]
    )


def drawn_views(facts: dict, drawn_by: DrawnByParams) -> np.ndarray:
    """Which of the views that `geometry` describes such runs draw with its seed, bool (N, K)."""
    drawn = np.zeros((facts["frames"], facts["views"]), bool)
    for phase, steps in drawn_by.steps.items():
        batches = Batches(
            facts["seed"], phase, *drawn.shape, batch=drawn_by.batch_size, flip_probability=0.0, jitter=0.0
        )
        drawn |= batches.drawn(steps)
    return drawn


def stored_grid(size_px: Sequence[int], stride: int) -> tuple[int, int]:
    """Cells (h, w) of the logits of an image (H, W), one for `stride` pixels each way; the last may hang over."""
    return tuple(-(-side // stride) for side in size_px)


def stored_shape(kind: str, facts: dict, classes: int, drawn: np.ndarray | None = None) -> tuple[int, ...]:
    """Shape of the stored logits.

    (N, K, h, w, C) of `views`, or (M, h, w, C) of the M that are `drawn`; (N, h, w, C) of the whole frames of `frame`.
    """
    of_px = facts["crop_px"] if kind == "views" else facts["frame_px"]
    grid = stored_grid(of_px, facts["stride"])
    if kind != "views":
        return (facts["frames"], *grid, classes)
    return (*((facts["frames"], facts["views"]) if drawn is None else (int(drawn.sum()),)), *grid, classes)


class Teaching:
    """An opened folder of teacher logits that fits the data: the logits to cut batches from, or the live teacher."""

    def __init__(self, kind: str, facts: dict, folder: Path | None = None) -> None:
        """Open the folder of `kind` and check it against `geometry` facts.

        Raises:
            InputError: the folder is missing, truncated, or was made from something else; the message says what.
        """
        self.kind, self.facts, self.folder = kind, facts, folder or FOLDER / kind
        self.manifest = self._checked_manifest()
        self._check_teacher()
        # The teacher's class maps of val. Read after the training only, which would be late to find no archive.
        self.val_classes = ClassMapArchive(self.folder / VAL_CLASSES)
        self.stored: StoredLogits | None = None
        if kind != "online":
            grid = (facts["crop_px"][0] // facts["stride"], facts["crop_px"][1] // facts["stride"])
            self.stored = StoredLogits.open(self.folder, self.manifest["arrays"], grid, facts["stride"])
            self._check_places(self.stored.rows)

    def _checked_manifest(self) -> dict:
        try:
            manifest = read_json(self.folder / MANIFEST)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: no readable manifest ({error}); run: dvc repro teacher-logits") from None
        for key, expected in (self.facts | {"kind": self.kind}).items():
            if manifest.get(key) != expected:
                raise InputError(f"{self.folder}: {key} is {manifest.get(key)!r:.200} there, {expected!r} is needed")
        if not isinstance(manifest.get("teacher_sha256"), str):
            raise InputError(f"{self.folder}: its manifest names no teacher; run: dvc repro teacher-logits")
        if self.kind != "online" and not isinstance(manifest.get("arrays"), dict):
            raise InputError(f"{self.folder}: its manifest describes no arrays; run: dvc repro teacher-logits")
        return manifest

    def _check_places(self, rows: np.ndarray | None) -> None:
        found, needed = np.shape(rows), (self.facts["frames"], self.facts["views"]) if self.kind == "views" else ()
        if found != needed:
            raise InputError(
                f"{self.folder}: its arrays are of {list(found)} frames and views, {list(needed)} are needed; "
                "run: dvc repro teacher-logits"
            )

    def _check_teacher(self) -> None:
        """A student depends on the folder alone, and may be trained where no teacher is; a teacher there has to be its.

        DVC keeps the two together. They part when stages are run one by one, and then the student would learn from one
        teacher and be compared with another.
        """
        if not is_composite(TEACHER) and not (TEACHER / WEIGHTS).is_file():
            return
        found, expected = self.manifest.get("teacher_sha256"), teacher_sha256(TEACHER)
        if expected != found:
            raise InputError(
                f"{self.folder}: teacher_sha256 is {found!r} there, {TEACHER} has {expected!r}; "
                "run: dvc repro teacher-logits, or dvc checkout for a teacher and logits that belong together"
            )

    def drawn_from(self, name: str, batches: Batches, steps: int) -> StoredLogits | None:
        """The stored logits, for `steps` of `batches` of the training `name`; None for the live teacher.

        Raises:
            InputError: these draw a view that is not stored.
        """
        lacking = self.stored.lacking if self.stored is not None else None
        if lacking is not None and (missing := batches.drawn(steps) & lacking).any():
            raise InputError(
                f"{self.folder}: lacks {missing.sum()} of the views that {name} draws; it has those drawn by "
                f"{self.manifest.get('drawn_by')!r:.100}; change teacher_logits.drawn_by, null stores all"
            )
        return self.stored

    def live_teacher(self, compute: Compute) -> nn.Module | None:
        """The teacher itself, in eval mode, for `online`; None for the kinds whose logits are stored.

        Its logits come on the grid on which they would be stored, so that students of all kinds compare alike.
        """
        if self.kind != "online":
            return None
        return _OnStoredGrid(compute.place(load_net(self.folder / WEIGHTS)[0]), self.facts["stride"]).eval()


class _OnStoredGrid(nn.Module):
    """A network whose logits are resized, as `teacher_logits` does, to one cell for `stride` pixels each way."""

    def __init__(self, net: nn.Module, stride: int) -> None:
        super().__init__()
        self.net, self.stride = net, stride

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """images_BCHW -> logits_BChw, float32."""
        grid = stored_grid(images_BCHW.shape[-2:], self.stride)
        logits = self.net(images_BCHW).float()
        return logits if tuple(logits.shape[-2:]) == grid else upsample(logits, grid)
