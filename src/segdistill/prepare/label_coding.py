"""From the pixels of a label image, ids or colours, to classes. Unknown ones are refused.

H and W are the image's own pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from segdistill.core.errors import UserError
from segdistill.formats.classes import IGNORE, Color

SHOWN = 8  # unknown values named in full


class IdCoding:
    """Label images whose pixels are ids 0..255."""

    def __init__(self, class_of_id: Mapping[int, int], ignored: Iterable[int], ignore_others: bool = False) -> None:
        """Take the class of each id, the ids without a class, and whether all other ids have none either."""
        self._classes = np.full(256, IGNORE, np.uint8)
        self._known = np.full(256, ignore_others)
        for label_id, number in class_of_id.items():
            self._classes[label_id] = number
        self._known[[*class_of_id, *ignored]] = True

    def classes(self, label_ids_HW: np.ndarray) -> np.ndarray:
        """Return classes uint8 (H, W) of label ids uint8 (H, W); raise a UserError for ids outside the table."""
        # bytes.translate maps bytes in C, several times as fast as NumPy's indexing or counting.
        label_ids = label_ids_HW.tobytes()
        if b"\0" in label_ids.translate(self._known.tobytes()):
            unknown = np.setdiff1d(label_ids_HW, np.flatnonzero(self._known))
            known = np.flatnonzero(self._known)
            runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)  # 0 1 2 3 7 is shown as "0 to 3, 7"
            allowed = ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
            raise UserError(f"label ids {_first(unknown)} are not in the table; allowed: {allowed}")
        return np.frombuffer(label_ids.translate(self._classes.tobytes()), np.uint8).reshape(label_ids_HW.shape)


class ColorCoding:
    """Label images whose pixels are RGB colours."""

    def __init__(self, class_of_color: Mapping[Color, int], ignored: Iterable[Color], ignore_others: bool = False):
        numbers = {_packed(np.array(color)).item(): number for color, number in class_of_color.items()}
        numbers |= {_packed(np.array(color)).item(): IGNORE for color in ignored}
        self._colors = np.array(sorted(numbers), np.uint32)
        self._classes = np.array([numbers[color] for color in sorted(numbers)], np.uint8)
        self._ignore_others = ignore_others

    def classes(self, colors_HW3: np.ndarray) -> np.ndarray:
        """Return classes uint8 (H, W) of colours uint8 (H, W, 3); raise a UserError for colours outside the table."""
        colors_HW = _packed(colors_HW3)
        places_HW = np.searchsorted(self._colors, colors_HW).clip(max=len(self._colors) - 1)
        known_HW = self._colors[places_HW] == colors_HW
        if not self._ignore_others and not known_HW.all():
            unknown = [
                tuple(int(color >> shift & 255) for shift in (16, 8, 0)) for color in np.unique(colors_HW[~known_HW])
            ]
            raise UserError(
                f"label colors {_first([list(color) for color in unknown])} are not in the table, "
                f"which has {len(self._colors)}"
            )
        return np.where(known_HW, self._classes[places_HW], np.uint8(IGNORE))


def _packed(colors: np.ndarray) -> np.ndarray:
    """Return RGB values (..., 3) as one number each, uint32 (...)."""
    red, green, blue = (colors[..., channel].astype(np.uint32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _first(values: Iterable) -> str:
    values = list(values)
    return ", ".join(map(str, values[:SHOWN])) + (f" and {len(values) - SHOWN} more" if len(values) > SHOWN else "")
