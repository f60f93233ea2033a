"""Class maps on disk: all of val in one compressed archive, a few as coloured pictures with their legend."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.base.class_table import ClassTable
from segdistill.base.errors import InputError
from segdistill.base.files import atomic_directory, atomic_file, write_json
from segdistill.scoring.metrics_file import LEGEND

MAX_MAP_BYTES = Image.MAX_IMAGE_PIXELS  # what no frame outgrows; keeps a crafted archive from filling the memory


def write_archive(path: str | Path, class_maps: dict[int, np.ndarray]) -> None:
    """Write class maps uint8 (H, W) by frame index. They compress about fifty times; the bytes are repeatable."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{str(index): classes for index, classes in class_maps.items()})


class ClassMapArchive:
    """Reads what `write_archive` wrote: `archive(index)` is uint8 (H, W).

    Raises:
        InputError: the file is no such archive, or the class map asked for is missing or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except Exception as error:  # a damaged zip surfaces as nearly any type
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: no readable archive of class maps ({reason})") from None

    def __call__(self, index: int) -> np.ndarray:
        try:
            with self._archive.open(f"{index}.npy") as member:
                return _class_map(member.read(MAX_MAP_BYTES + 1))
        except KeyError:
            raise InputError(f"{self.path}: has no class map of frame {index}; it is of other data") from None
        except Exception as error:
            raise InputError(f"{self.path}: no readable class map of frame {index} ({error})") from None


def _class_map(content: bytes) -> np.ndarray:
    """The uint8 (H, W) array of a .npy file, whose header is not believed before it is checked."""
    if len(content) > MAX_MAP_BYTES:
        raise ValueError(f"larger than the {MAX_MAP_BYTES} bytes that are read")
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.uint8 or len(shape) != 2:
        raise ValueError(f"holds {dtype} {list(shape)}; a class map is uint8 of two dimensions")
    return np.frombuffer(bytearray(content[stream.tell() :]), np.uint8).reshape(shape, order="F" if by_columns else "C")


def as_picture(pixels: np.ndarray, table: ClassTable) -> Image.Image:
    """RGB uint8 (H, W, 3) as a photograph, a class map uint8 (H, W) in its colours."""
    picture = Image.fromarray(pixels)
    if pixels.ndim == 2:
        picture.putpalette(table.palette.tobytes())
    return picture


def write_pictures(folder: str | Path, pictures: dict[str, np.ndarray], table: ClassTable) -> None:
    """Write pictures as PNG by name, atomically as a folder: RGB (H, W, 3), or class maps (H, W) in their colours.

    Beside them lies the legend, so that whoever shows them need not know the data set.
    """
    with atomic_directory(folder) as temporary:
        for name, pixels in pictures.items():
            as_picture(pixels, table).save(temporary / f"{name}.png", optimize=True)
        write_json(temporary / LEGEND, table.facts())


def write_class_map(path: str | Path, classes_HW: np.ndarray, table: ClassTable) -> None:
    """Write one class map uint8 (H, W) as a PNG in its colours, atomically."""
    with atomic_file(path) as temporary:
        as_picture(classes_HW, table).save(temporary, "PNG", optimize=True)
