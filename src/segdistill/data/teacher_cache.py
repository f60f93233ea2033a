"""The cache of teacher logits: its format, and a reader that refuses a cache of other data or another teacher.

A student learns from one folder, `data/teacher_logits/KIND`:

    views   logits (N, K, h, w, C): the teacher on K crop views of each of N train frames, or only on those that
            some trainings draw
    frame   logits (N, Hs, Ws, C): the teacher on whole frames, to be cropped (for comparison)
    online  teacher.safetensors: the teacher itself, run in every step (for comparison)

Each holds `manifest.json` (its inputs) and `val_classes.npz` (the teacher's class maps of val, which measure
agreement). The logits are in shards of the frames, logits-00000.npy and so on (see `data.shards`). Next to them:

    scale       uint8 only: float16 (N, K, h, 2, C), or (N, h, 2, C): offset and step of each class in each row
    features, features_scale    views only, with feature_channels: the teacher's features of the same views,
                projected to D channels and scaled to a mean square of 1; uint8 (N, K, s, t, D), one cell per 16 pixels,
                with a scale like that of the logits, float16 (N, K, s, 2, D)
    rows.npy    where only some views are stored: int32 (N, K), the place of each in the arrays, which are then
                (M, h, w, C) and (M, h, 2, C); -1 where it is not stored. One file, without shards

A flipped crop gets the mirrored logits of its view. Where a teacher differs too much on a mirrored image, `views` has
2 K views of each frame instead: view K + k is the teacher on view k mirrored, and no logits are mirrored.

logit = offset + step * stored. A scale for each class of each row costs 4 C / w bytes more per vector than one for each
class of the view, and its error is several times smaller; one for each cell, over its classes, costs 4 bytes per vector
and has a larger error as well (benchmarks/cache_precision.py). Offsets are kept, because only a softmax over classes
may drop them.

Shapes: B crops, N frames, K views, M stored views or frames, h/w cells of the logits' grid, C classes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.files import read_json, write_json
from segdistill.core.provenance import file_sha256
from segdistill.data.arrays import Rows, ShardedArray, open_array
from segdistill.data.sampling import UNSCALED, BatchIndices, BatchSampler, ViewSpec
from segdistill.data.shards import shard_file
from segdistill.data.transforms import crop
from segdistill.params.archs import FEATURE_STRIDE
from segdistill.paths import TEACHER, TEACHER_LOGITS, TEACHER_WEIGHTS

MANIFEST = "manifest.json"
LOGITS, SCALE, FEATURES, FEATURES_SCALE = "logits", "scale", "features", "features_scale"  # in shards
ROWS = "rows.npy"
ENSEMBLE = "teacher.json"  # in TEACHER, of a teacher that is more than one torch network
FOLDS = "folds.json"  # in TEACHER, of a cross-fitted teacher
_REMEDY = "run: dvc repro teacher-logits"


def is_ensemble(folder: Path) -> bool:
    """Return whether the teacher in `folder` is more than one torch network that runs once per image."""
    return (folder / ENSEMBLE).is_file()


def teacher_sha256(folder: Path) -> str:
    """Return the hex SHA-256 of the file that determines the predictions of the teacher in `folder`.

    Of a cross-fitted teacher it covers the teachers of the folds as well.
    """
    whole = file_sha256(folder / (ENSEMBLE if is_ensemble(folder) else TEACHER_WEIGHTS))
    if not (folder / FOLDS).is_file():
        return whole
    return hashlib.sha256((whole + file_sha256(folder / FOLDS)).encode()).hexdigest()


def stored_grid(size_px: Sequence[int], stride: int) -> tuple[int, int]:
    """Return the cells (h, w) of the logits of an image (H, W), one per `stride` pixels; the last may hang over."""
    return (-(-size_px[0] // stride), -(-size_px[1] // stride))


class ArraySpec(NamedTuple):
    """dtype and shape of a stored array."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: np.ndarray) -> ArraySpec:
        return cls(str(array.dtype), tuple(array.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Manifest:
    """The inputs of a cache and its arrays.

    Attributes:
        kind: views, frame or online.
        dtype: of the stored logits; uint8 has a scale as well.
        arrays: the arrays of the folder by file name; empty for `online`.
        limit_views_to: the trainings whose views are stored, as teacher_logits.limit_views_to; None stores all.
        mirrored: whether the mirrored views are stored as well, as views K to 2 K - 1.
        mirror_error: how far the teacher on mirrored views is from its mirrored logits: the measured `views`, their
            `mean_kl`, and `changed_share`, that of the cells with another class; None where nothing was measured.
        cross_fit: of a cross-fitted teacher, its `folds` and the number of `frames` of each.
        features: how the stored features were made: their `stride`, the `channels` of the teacher, and
            `variance_share`, what the projection keeps of the variance; None where none are stored.
    """

    kind: str
    spec: ViewSpec
    dtype: str
    teacher_sha256: str
    arrays: dict[str, ArraySpec]
    limit_views_to: dict[str, int] | None = None
    mirrored: bool = False
    mirror_error: dict[str, float] | None = None
    cross_fit: dict[str, Any] | None = None
    features: dict[str, float] | None = None

    def facts(self) -> dict[str, Any]:
        """Return the manifest as JSON-like values."""
        arrays = {name: {"dtype": array.dtype, "shape": list(array.shape)} for name, array in self.arrays.items()}
        facts: dict[str, Any] = {"kind": self.kind, "dtype": self.dtype, "teacher_sha256": self.teacher_sha256}
        if self.kind != "online":
            facts["arrays"] = arrays
        # Facts that caches of earlier versions do not have are written where they say something.
        if self.limit_views_to is not None:
            facts["limit_views_to"] = self.limit_views_to
        if self.mirrored:
            facts["mirrored"] = True
        if self.mirror_error is not None:
            facts["mirror_error"] = self.mirror_error
        if self.cross_fit is not None:
            facts["cross_fit"] = self.cross_fit
        if self.features is not None:
            facts["features"] = self.features
        return self.spec.facts() | facts

    def shards_of(self, name: str) -> list[str]:
        """Return the files of the array `name`, in the order of their rows."""
        files = (shard_file(name, number) for number in itertools.count())
        return list(itertools.takewhile(self.arrays.__contains__, files))

    def write(self, folder: Path) -> None:
        """Write the manifest into `folder`, atomically."""
        write_json(folder / MANIFEST, self.facts())

    @classmethod
    def read(cls, folder: Path, kind: str, spec: ViewSpec) -> Manifest:
        """Read the manifest of `folder`, which has to be of `kind` and `spec`.

        Raises:
            UserError: it is missing or damaged, or the cache has other inputs; the message says which.
        """
        try:
            found = read_json(folder / MANIFEST)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: no readable manifest ({error}); {_REMEDY}") from None
        needed = {"scale_range": list(UNSCALED)} | spec.facts() | {"kind": kind}
        found = {"scale_range": list(UNSCALED)} | found  # manifests of unscaled views do not name it
        for key, expected in needed.items():
            if found.get(key) != expected:
                raise UserError(f"{folder}: {key} is {found.get(key)!r:.200} there, {expected!r} is needed")
        if not isinstance(found.get("teacher_sha256"), str):
            raise UserError(f"{folder}: its manifest names no teacher; {_REMEDY}")
        arrays = {}
        if kind != "online":
            if not isinstance(found.get("arrays"), dict):
                raise UserError(f"{folder}: its manifest describes no arrays; {_REMEDY}")
            for name, facts in found["arrays"].items():
                is_right = isinstance(facts, dict) and facts.keys() == {"dtype", "shape"}
                if not is_right or not isinstance(facts["shape"], list):
                    raise UserError(f"{folder}: its manifest says {facts!r:.100} of {name}; {_REMEDY}")
                arrays[name] = ArraySpec(str(facts["dtype"]), tuple(facts["shape"]))
        return cls(
            kind,
            spec,
            str(found.get("dtype")),
            found["teacher_sha256"],
            arrays,
            limit_views_to=found.get("limit_views_to"),
            mirrored=found.get("mirrored") is True,
            mirror_error=found.get("mirror_error"),
            cross_fit=found.get("cross_fit"),
            features=found.get("features"),
        )


def rows_of(stored: np.ndarray) -> np.ndarray:
    """Return the row of each view that is `stored`, bool (N, K), in the arrays: int32 (N, K), -1 for the others."""
    return np.where(stored, np.cumsum(stored).reshape(stored.shape) - 1, -1).astype(np.int32)


class StoredCrops(NamedTuple):
    """Logits or features of a batch as stored: values (B, h, w, C), and for uint8 their scale (B, h, 2, C)."""

    values: Tensor
    scale: Tensor | None = None

    def floats(self, device: torch.device) -> Tensor:
        """Return the logits, float32 (B, C, h, w) channels-last on `device`; only stored bytes travel there."""
        logits = self.values.to(device, non_blocking=True).float()
        if self.scale is not None:
            offset, step = self.scale.to(device, non_blocking=True).float().split(1, dim=2)
            logits = logits.mul_(step).add_(offset)
        return logits.permute(0, 3, 1, 2)

    def pinned(self) -> StoredCrops:
        """Return the same in page-locked memory."""
        return StoredCrops(self.values.pin_memory(), None if self.scale is None else self.scale.pin_memory())


class StoredLogits:
    """The logits of one folder, mapped. Crops of `grid` cells are read from them: whole views, or windows of frames.

    Features are read likewise; their channels take the place of the classes.
    """

    def __init__(
        self,
        logits: Rows,
        scale: Rows | None,
        grid: tuple[int, int],
        stride: int,
        rows: np.ndarray | None = None,
        mirrored: bool = False,
    ) -> None:
        """Read from `logits` at `stride` pixels per cell.

        Args:
            logits: (N, K, h, w, C) of views, (N, Hs, Ws, C) of frames, or (M, h, w, C) of the views that `rows` places.
            scale: for uint8 only.
            rows: int (N, K), -1 where a view is not stored.
            mirrored: whether the second half of the views of a frame are those of the first half, mirrored.
        """
        self.grid, self.stride, self.mirrored = grid, stride, mirrored
        if rows is None and logits.ndim == 5:
            rows = rows_of(np.ones(logits.shape[:2], bool))
        self.rows = None if rows is None else np.asarray(rows)  # None for whole frames
        parts = [ShardedArray.of(part) for part in (logits, scale) if part is not None]
        self.arrays = [ShardedArray([shard.reshape(-1, *shard.shape[-3:]) for shard in part.shards]) for part in parts]

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, features: bool = False) -> StoredLogits:
        """Map the files of the logits in `folder`, or those of the features, and compare them with its manifest.

        Raises:
            UserError: a file is missing, truncated, or differs from the manifest.
        """
        values, scale = (FEATURES, FEATURES_SCALE) if features else (LOGITS, SCALE)
        opened: dict[str, np.ndarray] = {}
        for name in (*manifest.shards_of(values), *manifest.shards_of(scale), ROWS):
            if name not in manifest.arrays:
                continue
            array = opened[name] = open_array(folder / name, _REMEDY)
            if (found := ArraySpec.of(array)) != (written := manifest.arrays[name]):
                raise UserError(f"{folder / name}: holds {found}, its manifest says {written}")
        logits, scales = ([opened[file] for file in manifest.shards_of(name)] for name in (values, scale))
        # Bytes without their scale would be taken for logits.
        if not logits or len(scales) != sum(shard.dtype == np.uint8 for shard in logits):
            raise UserError(f"{folder}: its manifest describes {', '.join(opened) or 'no arrays'} alone; {_REMEDY}")
        if any(len({(shard.dtype, shard.shape[1:]) for shard in shards}) > 1 for shards in (logits, scales)):
            raise UserError(f"{folder}: its manifest describes shards of different shapes or types; {_REMEDY}")
        rows, stored = opened.get(ROWS), sum(map(len, logits))
        if rows is not None and not np.array_equal(np.sort(rows[rows >= 0]), np.arange(stored)):
            raise UserError(f"{folder / ROWS}: does not name each of the {stored} stored views once; {_REMEDY}")
        stride = FEATURE_STRIDE if features else manifest.spec.stride
        grid = stored_grid(manifest.spec.crop_px, stride)
        of_logits, of_scales = ShardedArray(logits), ShardedArray(scales) if scales else None
        return cls(of_logits, of_scales, grid, stride, rows, manifest.mirrored)

    @property
    def channels(self) -> int:
        """Return the number of classes of the logits, or of channels of the features."""
        return self.arrays[0].shape[-1]

    @property
    def lacking(self) -> np.ndarray | None:
        """Return the views that are not stored, bool (N, K); None where all are."""
        if self.rows is None or (self.rows >= 0).all():
            return None
        lacking = self.rows < 0
        return lacking[:, : lacking.shape[1] // (1 + self.mirrored)]  # both sides of a view are stored, or neither

    def crop(self, indices: BatchIndices, origins: np.ndarray) -> StoredCrops:
        """Return the stored logits of a batch, flipped as its crops are; `origins` (B, 2) are in pixels."""
        frames, cells = self._place(indices, origins)
        unflipped = np.zeros(len(frames), bool)
        flips = unflipped if self.mirrored else indices.flips
        values = np.empty((len(frames), *self.grid, self.arrays[0].shape[-1]), self.arrays[0].dtype)
        crops = [torch.from_numpy(crop(self.arrays[0], frames, cells, flips, self.grid, values))]
        for scale in self.arrays[1:]:  # a flip moves cells along a row, and the row keeps its scale
            size, rows = (self.grid[0], 2), cells * (1, 0)
            out = np.empty((len(frames), *size, scale.shape[-1]), scale.dtype)
            crops.append(torch.from_numpy(crop(scale, frames, rows, unflipped, size, out)))
        return StoredCrops(*crops)

    def prefetch(self, indices: BatchIndices, origins: np.ndarray) -> int:
        """Ask the kernel for the pages that `crop` will read; return the bytes that they span."""
        frames, cells = self._place(indices, origins)
        return sum(array.prefetch(frames, cells[:, 0], self.grid[0]) for array in self.arrays)

    def drop_pages(self) -> None:
        """Drop the pages that were read from memory."""
        for array in self.arrays:
            array.drop_pages()

    def _place(self, indices: BatchIndices, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where in the arrays (M, ...) each crop is: its frame or view (B,), and its top-left cell (B, 2)."""
        if self.rows is None:
            return indices.frames, origins // self.stride
        views = indices.views
        if self.mirrored:
            views = views + indices.flips * (self.rows.shape[1] // 2)
        return self.rows[indices.frames, views], np.zeros_like(origins)


class TeacherCache:
    """An opened folder of teacher logits that fits the data.

    `stored` has the logits that batches are cropped from; it is None for `online`, where the live teacher runs.
    `features` has the features of the same views, None where none are stored.
    """

    def __init__(self, kind: str, spec: ViewSpec, folder: Path | None = None) -> None:
        """Open the folder of `kind` and check it against `spec`, and against the teacher in models/teacher if any.

        Raises:
            UserError: the folder is missing or damaged, or has other inputs; the message says which.
        """
        self.kind, self.spec, self.folder = kind, spec, folder or TEACHER_LOGITS / kind
        self.manifest = Manifest.read(self.folder, kind, spec)
        # DVC keeps teacher and logits together. When stages run one by one they may differ, and then the student would
        # learn from one teacher and be compared with another.
        if is_ensemble(TEACHER) or (TEACHER / TEACHER_WEIGHTS).is_file():
            cached, current = self.manifest.teacher_sha256, teacher_sha256(TEACHER)
            if current != cached:
                raise UserError(
                    f"{self.folder}: teacher_sha256 is {cached!r} there, {TEACHER} has {current!r}; "
                    f"{_REMEDY}, or dvc checkout for a teacher and logits that belong together"
                )
        self.stored: StoredLogits | None = None
        self.features: StoredLogits | None = None
        if kind != "online":
            self.stored = StoredLogits.open(self.folder, self.manifest)
        if kind == "views" and self.manifest.shards_of(FEATURES):
            self.features = StoredLogits.open(self.folder, self.manifest, features=True)
        for opened in filter(None, (self.stored, self.features)):
            found = () if opened.rows is None else opened.rows.shape
            needed = (spec.frames, spec.views * (1 + self.manifest.mirrored)) if kind == "views" else ()
            if found != needed:
                arrays = f"its arrays are of {list(found)} frames and views, {list(needed)} are needed"
                raise UserError(f"{self.folder}: {arrays}; {_REMEDY}")

    def check_holds(self, name: str, batches: BatchSampler, steps: int) -> None:
        """Raise a UserError when `steps` of `batches` of the training `name` draw a view that is not stored."""
        lacking = self.stored.lacking if self.stored is not None else None
        if lacking is not None and (missing := batches.drawn(steps) & lacking).any():
            raise UserError(
                f"{self.folder}: lacks {missing.sum()} of the views that {name} draws; it has those drawn by "
                f"{self.manifest.limit_views_to!r:.100}; change teacher_logits.limit_views_to, null stores all"
            )
