"""The teacher's logits, computed once: built here, read here, and refused here when they belong to something else.

A student learns from one folder, `data/teacher_logits/KIND`:

    views   logits.npy (N, K, h, w, C): the teacher on K crop views of each of N train frames
    frame   logits.npy (N, Hs, Ws, C): the teacher on whole frames, to be cropped (for comparison)
    online  teacher.safetensors: the teacher itself, to be run in every step (for comparison)

Each holds `manifest.json` (what it was made from) and `val_classes.npz` (the teacher's class maps of val, to measure
agreement by). h = H / stride; channels last, so that a view is one long read.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segdistill.checkpoint import load_net
from segdistill.compute import Compute
from segdistill.dataset import Split
from segdistill.errors import InputError
from segdistill.files import atomic_directory, read_json, write_json
from segdistill.nets.resize import upsample
from segdistill.params import TeacherLogitsParams
from segdistill.progress import Progress
from segdistill.provenance import file_sha256
from segdistill.rng import BatchPlan, view_origins
from segdistill.transforms import MEAN, STD, cut, normalised

FOLDER = Path("data/teacher_logits")


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


def origins_of(facts: dict) -> np.ndarray:
    """Top-left corners int64 (N, K, 2) in pixels of the views that `geometry` describes."""
    return view_origins(
        facts["seed"], facts["frames"], facts["views"], facts["frame_px"], facts["crop_px"], facts["stride"]
    )


def build_cache(kind: str, out: Path, split: Split, facts: dict, params: TeacherLogitsParams, compute: Compute) -> None:
    """Write the folder of one kind from `models/teacher`, atomically.

    Raises:
        InputError: the teacher gives a logit that is not finite in the stored precision.
    """
    teacher = Path("models/teacher")
    net, _ = load_net(teacher / "teacher.safetensors")
    manifest = facts | {
        "kind": kind,
        "dtype": params.dtype,
        "teacher_sha256": file_sha256(teacher / "teacher.safetensors"),
    }
    with atomic_directory(out) as folder:
        if kind == "online":
            shutil.copyfile(teacher / "teacher.safetensors", folder / "teacher.safetensors")
        else:
            manifest["shape"] = _write_logits(kind, folder, split, facts, params, compute.place(net), compute)
        shutil.copyfile(teacher / "val_classes.npz", folder / "val_classes.npz")
        write_json(folder / "manifest.json", manifest)


def _write_logits(
    kind: str, folder: Path, split: Split, facts: dict, params: TeacherLogitsParams, net: nn.Module, compute: Compute
) -> list[int]:
    crops = _view_crops(split, facts, params.batch_size) if kind == "views" else _whole_frames(split)
    of_px = facts["crop_px"] if kind == "views" else facts["frame_px"]
    grid = tuple(-(-side // facts["stride"]) for side in of_px)
    per_frame = facts["views"] if kind == "views" else 1
    stored, flat = None, None
    total = len(split) * per_frame
    with Progress(f"teacher-logits@{kind}", total, unit="crop") as progress:
        for first, images in crops:
            logits = teacher_logits(net, images, grid, compute)
            if stored is None:
                shape = (len(split), *((per_frame,) if kind == "views" else ()), *grid, logits.shape[-1])
                stored = np.lib.format.open_memmap(folder / "logits.npy", "w+", params.dtype, shape)
                flat = stored.reshape(total, *grid, logits.shape[-1])
            flat[first : first + len(images)] = logits
            _check_finite(flat[first : first + len(images)], split, first, per_frame)
            progress.advance(len(images))
    stored.flush()
    return list(stored.shape)


def _view_crops(split: Split, facts: dict, batch: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of its first crop, images uint8 (B, H, W, 3)) over all views of all frames, in order."""
    corners = origins_of(facts).reshape(-1, 2)
    for first in range(0, len(corners), batch):
        chosen = np.arange(first, min(first + batch, len(corners)))
        images = np.empty((len(chosen), *facts["crop_px"], 3), np.uint8)
        unflipped = np.zeros(len(chosen), bool)
        yield first, cut(split.images, chosen // facts["views"], corners[chosen], unflipped, facts["crop_px"], images)


def _whole_frames(split: Split) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(len(split)):
        yield first, np.array(split.images[first : first + 1])


@torch.inference_mode()
def teacher_logits(net: nn.Module, images_BHW3: np.ndarray, grid: tuple[int, int], compute: Compute) -> np.ndarray:
    """The teacher's logits float32 (B, *grid, C) of uint8 crops, resized to the grid where its own is another."""
    inputs = normalised(torch.from_numpy(images_BHW3).to(compute.device))
    with compute.autocast():
        logits = net.eval()(inputs)
    logits = logits.float()
    if tuple(logits.shape[-2:]) != tuple(grid):
        logits = upsample(logits, grid)
    return logits.permute(0, 2, 3, 1).cpu().numpy()


def _check_finite(stored: np.ndarray, split: Split, first: int, per_frame: int) -> None:
    finite = np.isfinite(stored).reshape(len(stored), -1).all(1)
    if not finite.all():
        frame = split.names[(first + int(finite.argmin())) // per_frame]
        raise InputError(f"teacher: a logit of frame {frame} is not finite as {stored.dtype}; no cache written")


class Teaching:
    """An opened folder of teacher logits that fits the data: cuts batches, or gives the live teacher."""

    def __init__(self, kind: str, facts: dict, folder: Path | None = None) -> None:
        """Open the folder of `kind` and check it against `geometry` facts.

        Raises:
            InputError: the folder is missing, truncated, or was made from something else; the message says what.
        """
        self.kind, self.facts, self.folder = kind, facts, folder or FOLDER / kind
        self.manifest = self._checked_manifest()
        self.logits = None if kind == "online" else self._mapped()

    def _checked_manifest(self) -> dict:
        try:
            manifest = read_json(self.folder / "manifest.json")
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder}: no readable manifest ({error}); run: dvc repro teacher-logits") from None
        for key, expected in (self.facts | {"kind": self.kind}).items():
            if manifest.get(key) != expected:
                raise InputError(f"{self.folder}: {key} is {manifest.get(key)!r} there, {expected!r} is needed")
        return manifest

    def _mapped(self) -> np.ndarray:
        try:
            logits = np.load(self.folder / "logits.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.folder}/logits.npy: unreadable ({error}); run: dvc repro teacher-logits") from None
        if list(logits.shape) != self.manifest["shape"] or str(logits.dtype) != self.manifest["dtype"]:
            found = f"{logits.dtype} {list(logits.shape)}"
            raise InputError(f"{self.folder}/logits.npy: holds {found}, its manifest says otherwise")
        return logits

    def cut(self, plan: BatchPlan, origins: np.ndarray) -> np.ndarray:
        """Logits (B, h, w, C) of the planned crops, mirrored where the plan flips."""
        stride, crop_px = self.facts["stride"], self.facts["crop_px"]
        grid = (crop_px[0] // stride, crop_px[1] // stride)
        out = np.empty((len(plan.frames), *grid, self.logits.shape[-1]), self.logits.dtype)
        if self.kind == "frame":
            return cut(self.logits, plan.frames, origins // stride, plan.flips, grid, out)
        for slot, (frame, view, flip) in enumerate(zip(plan.frames, plan.views, plan.flips, strict=True)):
            stored = self.logits[frame, view]
            out[slot] = stored[:, ::-1] if flip else stored
        return out

    def live_teacher(self, compute: Compute) -> nn.Module | None:
        """The teacher itself, in eval mode, for `online`; None for the kinds whose logits are stored."""
        if self.kind != "online":
            return None
        return compute.place(load_net(self.folder / "teacher.safetensors")[0]).eval()

    @property
    def val_classes(self) -> Path:
        """The archive of the teacher's class maps of val."""
        return self.folder / "val_classes.npz"
