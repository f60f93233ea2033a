"""Training curves as CSV files: one writer and one reader."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_file, name_path_in_errors

COLUMNS = ("step", "lr", "loss", "label_loss", "distill_loss", "holdout_mean_iou")


def write_curve(path: Path, points: Sequence[dict]) -> None:
    """Write the points of a curve, atomically; None is an empty cell."""
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(points)


def append_point(path: Path, point: dict) -> None:
    """Append one point at once, so that `segdistill track --watch` can follow a running training."""
    with name_path_in_errors(path), path.open("a", newline="", encoding="utf-8") as stream:
        csv.DictWriter(stream, COLUMNS).writerow(point)


def read_curve(path: Path, offset_steps: int = 0) -> list[dict]:
    """Return the points of a curve, `offset_steps` later; empty or non-finite cells are None.

    A last line that is still being written is left out. There are no points where there is no file.

    Raises:
        UserError: the file is not a curve.
    """
    try:
        whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
        return [
            {"step": int(row["step"]) + offset_steps} | {name: _number(row.get(name)) for name in COLUMNS[1:]}
            for row in csv.DictReader(whole.splitlines())
        ]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: not a training curve ({type(error).__name__}: {error})") from None


def _number(cell: str | None) -> float | None:
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None
