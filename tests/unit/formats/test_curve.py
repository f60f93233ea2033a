"""Training curves: written points are read again, and other files are refused by name."""

from __future__ import annotations

import pytest

from segdistill.core.errors import UserError
from segdistill.formats.curve import COLUMNS, append_point, read_curve, write_curve


def point(step: int, **changed: float | None) -> dict:
    return {"step": step} | dict.fromkeys(COLUMNS[1:], 0.5) | {"holdout_mean_iou": None} | changed


def test_points_are_read_again_and_may_be_shifted(tmp_path):
    path = tmp_path / "curve.csv"
    write_curve(path, [point(1, loss=1 / 3)])
    append_point(path, point(2, holdout_mean_iou=0.1))
    assert read_curve(path) == [point(1, loss=1 / 3), point(2, holdout_mean_iou=0.1)]
    assert [row["step"] for row in read_curve(path, offset_steps=10)] == [11, 12]


def test_missing_file_has_no_points(tmp_path):
    assert read_curve(tmp_path / "curve.csv") == []


def test_line_that_is_still_being_written_is_left_out(tmp_path):
    path = tmp_path / "curve.csv"
    write_curve(path, [point(1)])
    with path.open("a") as stream:
        stream.write("2,0.5,0.")
    assert read_curve(path) == [point(1)]


def test_values_that_are_not_finite_are_read_as_none(tmp_path):
    write_curve(tmp_path / "curve.csv", [point(1, loss=float("nan"), lr=float("inf"))])
    assert read_curve(tmp_path / "curve.csv") == [point(1, loss=None, lr=None)]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "step,loss\nx,1\n", "step,loss\n1,many\n"])
def test_file_that_is_no_curve_is_refused_by_name(tmp_path, content):
    (tmp_path / "curve.csv").write_text(content)
    with pytest.raises(UserError, match=r"curve\.csv: not a training curve"):
        read_curve(tmp_path / "curve.csv")
