"""What one finished model did on val, frame by frame, so that it can be shown without its weights or the data.

A record is a folder:

    confusion.csv    pixel counts of all frames: a row for each true class, a column for each predicted one
    frames.csv       the mIoU of each frame alone
    thumbnails.zip   small pictures of every frame: its class map as PNG; in the teacher's, photograph and truth as well

All frames are kept because which of them are worth a look is known only when the models are compared.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.base.class_table import ClassTable
from segdistill.base.files import atomic_directory
from segdistill.scoring.class_maps import as_picture

WIDTH_PX = 448  # of a thumbnail at most: 500 frames of Cityscapes then weigh a few MB
CONFUSION, FRAMES, THUMBNAILS = "confusion.csv", "frames.csv", "thumbnails.zip"
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same bytes whenever it is written


def frame_mean_iou(counts_CC: np.ndarray) -> float | None:
    """Mean IoU of one frame over the classes that occur in it; None where nothing is labelled.

    A class that is predicted but does not occur lowers the IoU of those that it covers, and is not one of the mean: one
    stray pixel would cost as much there as a whole missed class.
    """
    hits, truth, predicted = counts_CC.diagonal(), counts_CC.sum(1), counts_CC.sum(0)
    occurs = truth > 0
    if not occurs.any():
        return None
    return float((hits[occurs] / (truth + predicted - hits)[occurs]).mean())


class ValRecorder:
    """Takes what `evaluate` hands on of each frame; in memory stay only the small pictures, compressed."""

    def __init__(self, table: ClassTable, frame_names: tuple[str, ...]) -> None:
        self.table, self.frame_names = table, frame_names
        self.counts_CC = np.zeros((len(table), len(table)), np.int64)
        self.mean_iou: dict[int, float | None] = {}
        self._pictures: dict[str, bytes] = {}

    def add(self, index: int, classes_HW: np.ndarray, counts_CC: np.ndarray) -> None:
        """Frame `index`: its predicted classes uint8 (H, W) and its pixel counts int64 (C, C)."""
        self.counts_CC += counts_CC
        self.mean_iou[index] = frame_mean_iou(counts_CC)
        self.add_picture(index, "classes", classes_HW)

    def add_picture(self, index: int, kind: str, pixels: np.ndarray) -> None:
        """A further picture of a frame: a class map uint8 (H, W), or a photograph uint8 (H, W, 3)."""
        self._pictures[_picture_name(index, kind)] = _small(pixels, self.table)

    def write(self, folder: Path) -> None:
        """Write the record, atomically as a folder."""
        with atomic_directory(folder) as temporary:
            names = self.table.names
            rows = [[name, *map(int, counts)] for name, counts in zip(names, self.counts_CC, strict=True)]
            _write_csv(temporary / CONFUSION, ["class", *names], rows)
            frames = [
                [index, self.frame_names[index], "" if iou is None else iou] for index, iou in self.mean_iou.items()
            ]
            _write_csv(temporary / FRAMES, ["frame", "name", "mean_iou"], frames)
            # Stored as they are: PNG and JPEG are compressed already.
            with zipfile.ZipFile(temporary / THUMBNAILS, "w", zipfile.ZIP_STORED) as archive:
                for name, content in self._pictures.items():
                    archive.writestr(zipfile.ZipInfo(name, _ZIP_DATE), content)


class ValRecord:
    """Reads what a ValRecorder wrote.

    class_names: of the C classes; counts_CC: int64, row = true class; frame_names and mean_iou: by index of the frame.
    """

    def __init__(self, folder: Path) -> None:
        """Read the record in `folder`.

        Raises:
            FileNotFoundError: there is none.
        """
        self._thumbnails = folder / THUMBNAILS
        header, *rows = _read_csv(folder / CONFUSION)
        self.class_names = header[1:]
        self.counts_CC = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
        frames = _read_csv(folder / FRAMES)[1:]
        self.frame_names = {int(index): name for index, name, _ in frames}
        self.mean_iou = {int(index): float(iou) if iou else None for index, _, iou in frames}

    def picture(self, index: int, kind: str) -> bytes:
        """The file of a thumbnail: PNG of "classes" and "truth", JPEG of "image"."""
        with zipfile.ZipFile(self._thumbnails) as archive:
            return archive.read(_picture_name(index, kind))

    def classes(self, index: int, kind: str = "classes") -> np.ndarray:
        """A class map of the size of a thumbnail, uint8 (h, w)."""
        with Image.open(io.BytesIO(self.picture(index, kind))) as picture:
            return np.asarray(picture)


def _picture_name(index: int, kind: str) -> str:
    return f"{index:05d}_{kind}.{'jpg' if kind == 'image' else 'png'}"


def _small(pixels: np.ndarray, table: ClassTable) -> bytes:
    picture, stream, is_class_map = as_picture(pixels, table), io.BytesIO(), pixels.ndim == 2
    if picture.width > WIDTH_PX:
        size = (WIDTH_PX, max(1, round(picture.height * WIDTH_PX / picture.width)))
        # Class numbers must not be mixed with their neighbours.
        picture = picture.resize(size, Image.Resampling.NEAREST if is_class_map else Image.Resampling.LANCZOS)
    if is_class_map:
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _write_csv(path: Path, header: list, rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))
