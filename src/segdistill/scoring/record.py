"""The record of a model on val: results by frame that the report shows without weights or data; class maps as files.

A record is a folder:

    confusion.csv    pixel counts of all frames: a row for each true class, a column for each predicted one
    frames.csv       the mIoU of each frame alone
    groups.csv       for each group of frames (a city, a recording, or a stretch of one, see counted_groups) and class:
                     pixels hit, of the class, and predicted
    thumbnails.zip   small images of every frame: its class map as PNG; in the teacher's, photograph and truth as well
    unseen/          the same of the unseen drives, where there are any; without photographs and truth

It holds all frames, because only a comparison of the models shows which frames are worth a look.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory, atomic_file, write_json
from segdistill.formats.classes import ClassTable, class_key
from segdistill.formats.thumbnails import as_image, thumbnail

CONFUSION, FRAMES, GROUPS, THUMBNAILS = "confusion.csv", "frames.csv", "groups.csv", "thumbnails.zip"
UNSEEN = "unseen"  # the record of the unseen drives, in that of val
MOST_DRIVES_CUT, STRETCHES, STRETCH_FRAMES = 2, 10, 5  # at most 10 stretches in all, of at least 5 frames
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is written


def frame_mean_iou(counts_CC: np.ndarray) -> float | None:
    """Return the mean IoU of one frame over the classes that occur in it; None where nothing is labelled.

    A class that is predicted but does not occur lowers the IoU of those that it covers. It is left out of the mean: one
    stray pixel would cost as much as a whole missed class.
    """
    hits, truth, predicted = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
    occurs = truth > 0
    if not occurs.any():
        return None
    return float((hits[occurs] / (truth + predicted - hits)[occurs]).mean())


def counted_groups(groups: tuple[str, ...]) -> tuple[str, ...]:
    """Return the group of each frame that an interval counts: as given, or a stretch of it where it has two at most.

    One or two drives tell nothing about how drives differ. Stretches of consecutive frames still tell how much a gain
    depends on which frames of them were scored.
    """
    frames, before = Counter(groups), Counter[str]()
    if len(frames) > MOST_DRIVES_CUT:
        return groups
    found = []
    for group in groups:
        stretches = min(STRETCHES // len(frames), frames[group] // STRETCH_FRAMES)
        part = before[group] * stretches // frames[group] + 1
        found.append(f"{group} {part}/{stretches}" if stretches > 1 else group)
        before[group] += 1
    return tuple(found)


class ValRecorder:
    """Collect the results of each frame during `evaluate`; memory holds only compressed thumbnails."""

    def __init__(self, table: ClassTable, frame_names: tuple[str, ...], groups: tuple[str, ...] = ()) -> None:
        """Record frames of these names; `groups` names the group of each, by default the frame itself."""
        self.table, self.frame_names, self.groups = table, frame_names, counted_groups(groups) or frame_names
        self.counts_CC = np.zeros((len(table), len(table)), np.int64)
        self.mean_iou: dict[int, float | None] = {}
        self._group_counts = {group: np.zeros((3, len(table)), np.int64) for group in self.groups}
        self._images: dict[str, bytes] = {}

    def add(self, index: int, classes_HW: np.ndarray, counts_CC: np.ndarray) -> None:
        """Add the predicted classes uint8 (H, W) and the pixel counts int64 (C, C) of frame `index`."""
        self.counts_CC += counts_CC
        self._group_counts[self.groups[index]] += np.stack([counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)])
        self.mean_iou[index] = frame_mean_iou(counts_CC)
        self.add_image(index, "classes", classes_HW)

    def add_image(self, index: int, kind: str, pixels: np.ndarray) -> None:
        """Add an image of a frame: a class map uint8 (H, W), or a photograph uint8 (H, W, 3)."""
        self._images[_image_name(index, kind)] = thumbnail(pixels, self.table)

    def write(self, folder: Path, unseen: ValRecorder | None = None) -> None:
        """Write the record, and inside it that of the `unseen` drives, atomically as a folder."""
        with atomic_directory(folder) as temporary:
            self._write_into(temporary)
            if unseen is not None:
                (temporary / UNSEEN).mkdir()
                unseen._write_into(temporary / UNSEEN)

    def _write_into(self, folder: Path) -> None:
        names = self.table.names
        rows = [[name, *map(int, counts)] for name, counts in zip(names, self.counts_CC, strict=True)]
        _write_csv(folder / CONFUSION, ["class", *names], rows)
        frames = [[index, self.frame_names[index], "" if iou is None else iou] for index, iou in self.mean_iou.items()]
        _write_csv(folder / FRAMES, ["frame", "name", "mean_iou"], frames)
        by_class = [
            [group, name, *map(int, counts)]
            for group, counts_3C in self._group_counts.items()
            for name, counts in zip(names, counts_3C.T, strict=True)
        ]
        _write_csv(folder / GROUPS, ["group", "class", "hits", "truth", "predicted"], by_class)
        # Not compressed again: PNG and JPEG are.
        with zipfile.ZipFile(folder / THUMBNAILS, "w", zipfile.ZIP_STORED) as archive:
            for name, content in self._images.items():
                archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), content)


class ValRecord:
    """Read what a ValRecorder wrote.

    class_names: of the C classes; counts_CC: int64, row = true class; frame_names and mean_iou: by index of the frame;
    group_counts: int64 (3, C) by group: pixels hit, of the class, and predicted; empty in records of earlier versions.
    """

    def __init__(self, folder: Path) -> None:
        """Read the record in `folder`.

        Raises:
            FileNotFoundError: there is none.
            UserError: a file of it is damaged.
        """
        self._thumbnails = folder / THUMBNAILS
        try:
            header, *rows = _read_csv(folder / CONFUSION)
            classes = len(header) - 1
            counts = [[int(cell) for cell in row[1:]] for row in rows]
            self.class_names, self.counts_CC = header[1:], np.array(counts, np.int64).reshape(classes, classes)
            _, *frames = _read_csv(folder / FRAMES)
            self.frame_names = {int(index): name for index, name, _ in frames}
            self.mean_iou = {int(index): float(iou) if iou else None for index, _, iou in frames}
            self.group_counts = _group_counts(folder / GROUPS, self.counts_CC)
        except (ValueError, csv.Error) as error:
            raise UserError(f"{folder}: no readable record of val ({error}); dvc repro writes it again") from None

    def image(self, index: int, kind: str) -> bytes:
        """Return the bytes of a thumbnail: PNG of "classes" and "truth", JPEG of "image"."""
        try:
            with zipfile.ZipFile(self._thumbnails) as archive:
                return archive.read(_image_name(index, kind))
        except zipfile.BadZipFile as error:
            raise UserError(f"{self._thumbnails}: no readable zip ({error}); dvc repro writes it again") from None

    def classes(self, index: int, kind: str = "classes") -> np.ndarray:
        """Return a class map at the size of its thumbnail, uint8 (h, w)."""
        with Image.open(io.BytesIO(self.image(index, kind))) as image:
            return np.asarray(image)


def _group_counts(path: Path, counts_CC: np.ndarray) -> dict[str, np.ndarray]:
    """Return the counts by group, which add up to those of all frames; none where an earlier version wrote no file."""
    if not path.is_file():
        return {}
    columns: dict[str, list[list[int]]] = {}
    for group, _, *counts in _read_csv(path)[1:]:
        columns.setdefault(group, []).append([int(count) for count in counts])
    found = {group: np.array(counts, np.int64).T for group, counts in columns.items()}
    # Of fewer groups an interval would be another one.
    expected_3C = np.stack([counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)])
    if not np.array_equal(sum(found.values()), expected_3C):
        raise ValueError(f"{path.name} does not add up to {CONFUSION}")
    return found


def _image_name(index: int, kind: str) -> str:
    return f"{index:05d}_{kind}.{'jpg' if kind == 'image' else 'png'}"


def _write_csv(path: Path, header: list, rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


MAX_MAP_BYTES = 2**30 // 12  # of a class map: Pillow's own limit of pixels, so only a crafted archive has more


def write_archive(path: str | Path, class_maps: dict[int, np.ndarray]) -> None:
    """Write class maps uint8 (H, W) by frame index. They shrink about fiftyfold; the bytes are repeatable."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        arrays: Any = {str(index): classes for index, classes in class_maps.items()}
        np.savez_compressed(stream, **arrays)


class ClassMapArchive:
    """Read what `write_archive` wrote: `archive(index)` is uint8 (H, W).

    Raises:
        UserError: the file is no such archive, or the class map is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged zip surfaces as nearly any type
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: no readable archive of class maps ({reason})") from None

    def __call__(self, index: int) -> np.ndarray:
        try:
            with self._archive.open(f"{index}.npy") as member:
                return _class_map(member.read(MAX_MAP_BYTES + 1))
        except KeyError:
            raise UserError(f"{self.path}: has no class map of frame {index}; it is of other data") from None
        except Exception as error:
            raise UserError(f"{self.path}: no readable class map of frame {index} ({error})") from None


def _class_map(content: bytes) -> np.ndarray:
    """Return the uint8 (H, W) array of a .npy file, after checking its header."""
    if len(content) > MAX_MAP_BYTES:
        raise ValueError(f"larger than the {MAX_MAP_BYTES} bytes that are read")
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.uint8 or len(shape) != 2:
        raise ValueError(f"holds {dtype} {list(shape)}; a class map is uint8 of two dimensions")
    return np.frombuffer(bytearray(content[stream.tell() :]), np.uint8).reshape(shape, order="F" if by_columns else "C")


def write_images(folder: str | Path, images: dict[str, np.ndarray], table: ClassTable) -> None:
    """Write images as PNG by name, atomically as a folder: RGB (H, W, 3), or class maps (H, W) in their colours.

    The folder has a legend too, so that the report can show it without the data.
    """
    with atomic_directory(folder) as temporary:
        for name, pixels in images.items():
            as_image(pixels, table).save(temporary / f"{name}.png", optimize=True)
        write_json(temporary / LEGEND, table.facts())


def write_class_map(path: str | Path, classes_HW: np.ndarray, table: ClassTable) -> None:
    """Write one class map uint8 (H, W) as a PNG in its colours, atomically."""
    with atomic_file(path) as temporary:
        as_image(classes_HW, table).save(temporary, "PNG", optimize=True)


LEGEND = "classes.json"  # in a folder of images: names, label ids and colours of the classes, in their order


def metrics_on_disk(metrics: dict, class_names: Sequence[str]) -> dict:
    """Return the metrics of an evaluation as a metrics file has them: class_iou by class name, undefined ones None.

    Raises:
        UserError: the mean loss is not finite, so neither are the logits that were scored.
    """
    loss = metrics["mean_loss"]
    if loss is not None and not math.isfinite(loss):
        raise UserError(
            f"mean_loss on val is {loss}: its logits are not finite; take other weights, "
            "or train with a lower lr or larger batches"
        )
    by_class = {class_key(name): iou for name, iou in zip(class_names, metrics["class_iou"], strict=True)}
    return {key: value for key, value in metrics.items() if key != "class_iou"} | {"class_iou": by_class}
