"""The record of a model on val: hand-counted scores, exact counts, the same bytes twice, and small images."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.formats.classes import ClassTable
from segdistill.formats.thumbnails import WIDTH_PX
from segdistill.scoring.record import ValRecord, ValRecorder, counted_groups, frame_mean_iou

NAMES = ["road", 'a "quoted", name', "sky"]
TABLE = ClassTable(tuple(NAMES), (7, 8, 23), ((128, 64, 128), (244, 35, 232), (70, 130, 180)))


def test_frame_mean_iou_by_hand() -> None:
    # road: 6 of 8 right, one false alarm: 6 / 9. sky does not occur; its 2 false alarms only make road worse.
    assert frame_mean_iou(np.array([[6, 0, 2], [1, 3, 0], [0, 0, 0]])) == pytest.approx((6 / 9 + 3 / 4) / 2)
    assert frame_mean_iou(np.zeros((3, 3), np.int64)) is None
    assert frame_mean_iou(np.array([[0, 5], [0, 0]])) == 0.0


def recorder_of(size_px: tuple[int, int]) -> ValRecorder:
    recorder = ValRecorder(TABLE, ("first", "second, third"))
    for frame, counts in enumerate(([[2**40, 1, 0], [0, 1, 0], [0, 0, 0]], np.zeros((3, 3)))):
        recorder.add(frame, class_map(size_px, frame), np.array(counts, np.int64))
    return recorder


def class_map(size_px: tuple[int, int], seed: int) -> np.ndarray:
    classes = np.random.default_rng(seed).integers(0, 3, size_px).astype(np.uint8)
    classes[0, 0] = 255
    return classes


def test_written_record_is_read_again(tmp_path: Path) -> None:
    recorder_of((8, 16)).write(tmp_path / "val")
    record = ValRecord(tmp_path / "val")
    assert record.class_names == NAMES
    assert record.counts_CC.tolist() == [[2**40, 1, 0], [0, 1, 0], [0, 0, 0]]  # exact beyond what a float32 holds
    assert record.frame_names == {0: "first", 1: "second, third"}
    assert record.mean_iou == {0: pytest.approx((2**40 / (2**40 + 1) + 1 / 2) / 2), 1: None}
    assert np.array_equal(record.classes(1), class_map((8, 16), 1))
    with pytest.raises(KeyError):
        record.image(0, "image")


def test_record_of_the_unseen_drives_is_inside_that_of_val(tmp_path: Path) -> None:
    unseen = ValRecorder(TABLE, ("third",), ("drive",))
    unseen.add(0, class_map((8, 16), 5), np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]))
    recorder_of((8, 16)).write(tmp_path / "val", unseen)
    assert ValRecord(tmp_path / "val").frame_names == {0: "first", 1: "second, third"}
    found = ValRecord(tmp_path / "val" / "unseen")
    assert found.frame_names == {0: "third"}
    assert found.group_counts["drive"].tolist() == [[3, 2, 0], [4, 2, 0], [3, 3, 0]]
    recorder_of((8, 16)).write(tmp_path / "val")
    assert not (tmp_path / "val" / "unseen").exists()


def test_frames_of_one_or_two_drives_are_counted_in_stretches() -> None:
    one = counted_groups(("a",) * 23)
    assert Counter(one) == {f"a {part}/4": frames for part, frames in ((1, 6), (2, 6), (3, 6), (4, 5))}
    assert list(one) == sorted(one)
    assert len(set(counted_groups(("a",) * 200))) == 10
    assert sorted(set(counted_groups(("a",) * 10 + ("b",) * 9))) == ["a 1/2", "a 2/2", "b"]
    assert counted_groups(("a", "b", "c") * 30) == ("a", "b", "c") * 30


def test_record_has_the_same_bytes_twice(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        recorder_of((8, 16)).write(tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == ["confusion.csv", "frames.csv", "groups.csv", "thumbnails.zip"]


def test_large_frames_are_reduced_and_classes_stay_exact(tmp_path: Path) -> None:
    stripes = np.repeat(np.array([[0, 13, 255]], np.uint8), 512, axis=1).repeat(300, axis=0)
    recorder = ValRecorder(TABLE, ("first",))
    recorder.add(0, stripes, np.eye(3, dtype=np.int64))
    recorder.add_image(0, "image", np.full((300, 1536, 3), (200, 100, 50), np.uint8))
    recorder.write(tmp_path / "val")
    record = ValRecord(tmp_path / "val")
    classes = record.classes(0)
    assert classes.shape == (round(300 * WIDTH_PX / 1536), WIDTH_PX)
    assert set(np.unique(classes)) == {0, 13, 255}
    with Image.open(io.BytesIO(record.image(0, "image"))) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image, int)[10, 10] - (200, 100, 50)).max() < 4
    with Image.open(io.BytesIO(record.image(0, "classes"))) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (128, 64, 128)  # road, as Cityscapes paints it


DAMAGED = {
    "empty": ("confusion.csv", lambda text: ""),
    "a class less": ("confusion.csv", lambda text: text[: text.rindex("sky")]),
    "no number": ("confusion.csv", lambda text: text.replace(",0", ",zero")),
    "no frame": ("frames.csv", lambda text: ""),
    "half a line": ("frames.csv", lambda text: text + "2"),
    "a group less": ("groups.csv", lambda text: text[: text.index("second")].rstrip('"')),
    "no group": ("groups.csv", lambda text: ""),
    "half a group": ("groups.csv", lambda text: text[: text.rindex("sky")]),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_record_is_named(tmp_path: Path, damage: str) -> None:
    recorder = recorder_of((8, 16))
    recorder.add(1, class_map((8, 16), 1), np.eye(3, dtype=np.int64))
    recorder.write(tmp_path / "val")
    file, change = DAMAGED[damage]
    path = tmp_path / "val" / file
    assert change(path.read_text()) != path.read_text()
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=r"val: no readable record of val \(.*\); dvc repro writes it again"):
        ValRecord(tmp_path / "val")


def test_damaged_images_are_named(tmp_path: Path) -> None:
    recorder_of((8, 16)).write(tmp_path / "val")
    images = tmp_path / "val" / "thumbnails.zip"
    images.write_bytes(images.read_bytes()[:100])
    with pytest.raises(UserError, match=r"thumbnails\.zip: no readable zip"):
        ValRecord(tmp_path / "val").image(0, "classes")


def test_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ValRecord(tmp_path / "val")
