"""Class maps on disk: all of val in one compressed archive, a few as coloured pictures with their legend."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.class_table import ClassTable
from segdistill.errors import InputError
from segdistill.files import atomic_directory, atomic_file, write_json
from segdistill.metrics_file import LEGEND


def write_archive(path: str | Path, class_maps: dict[int, np.ndarray]) -> None:
    """Write class maps uint8 (H, W) by frame index. They compress about fifty times; the bytes are repeatable."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **{str(index): classes for index, classes in class_maps.items()})


class ClassMapArchive:
    """Reads what `write_archive` wrote: `archive(index)` is uint8 (H, W).

    InputError, on opening or reading, where there is no archive, a damaged one, or one without that frame.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        try:
            self._maps = np.load(path)
            if not isinstance(self._maps, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{path}: no readable archive of class maps ({reason})") from None

    def __call__(self, index: int) -> np.ndarray:
        try:
            return self._maps[str(index)]
        except KeyError:
            raise InputError(f"{self.path}: has no class map of frame {index}; it is of other data") from None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{self.path}: the class map of frame {index} is damaged ({error})") from None


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
