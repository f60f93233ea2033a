"""The synthetic city keeps the promises of Cityscapes (names, ids, every class) and its own: one key, one frame."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from segdistill.prepare.synthetic.render import CITIES, frame_name, render_frame, write_city

EVALUATED_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
SIZE_PX = (128, 256)
FRAMES = {"train": 24, "val": 12}


def checksum(*key) -> str:
    image, label_ids = render_frame(*key)
    return hashlib.sha256(image.tobytes() + label_ids.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def frames() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    return {split: [render_frame(0, split, index, SIZE_PX) for index in range(n)] for split, n in FRAMES.items()}


def test_a_frame_is_a_function_of_its_arguments():
    first = checksum(3, "train", 5, (64, 128))
    checksum(3, "train", 6, (64, 128))  # what was drawn in between does not matter
    assert checksum(3, "train", 5, (64, 128)) == first
    others = [(4, "train", 5), (3, "train", 6), (3, "train", 37), (3, "val", 5)]
    assert len({first, *(checksum(*key, (64, 128)) for key in others)}) == 5


def test_another_process_draws_the_same_frame():
    code = (
        "import hashlib; from segdistill.prepare.synthetic.render import render_frame;"
        "i, l = render_frame(1, 'val', 2, (96, 160));"
        "print(hashlib.sha256(i.tobytes() + l.tobytes()).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert printed == checksum(1, "val", 2, (96, 160))


@pytest.mark.parametrize("split", FRAMES)
def test_every_class_appears_and_only_ids_of_the_table(frames, split):
    counts = sum(np.bincount(label_ids.ravel(), minlength=256) for _, label_ids in frames[split])
    assert [class_id for class_id in EVALUATED_IDS if counts[class_id] < 30] == []
    assert counts[34:].sum() == 0
    share = counts / counts.sum()
    assert share[EVALUATED_IDS].sum() > 0.85, "most of a frame counts"
    assert share[7] == share.max(), "road is the most frequent class, as in Cityscapes"
    assert sum(share[class_id] < 0.01 for class_id in EVALUATED_IDS) >= 5, "a long tail"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_class_appears_in_a_dozen_frames_of_any_seed(seed):
    present = set()
    for index in range(FRAMES["val"]):
        present |= set(np.unique(render_frame(seed, "val", index, SIZE_PX)[1]).tolist())
    assert set(EVALUATED_IDS) <= present


def test_frames_differ(frames):
    images = [image for split in FRAMES for image, _ in frames[split]]
    assert len({image.tobytes() for image in images}) == len(images)
    means = np.array([image.mean(axis=(0, 1)) for image in images])
    assert means.std(axis=0).min() > 5, "no variety in light or paint"


@pytest.mark.parametrize("size_px", [(64, 128), (97, 203), (75, 60), (256, 512)])
def test_any_size(size_px):
    image, label_ids = render_frame(0, "train", 1, size_px)
    assert (image.shape, image.dtype) == ((*size_px, 3), np.uint8)
    assert (label_ids.shape, label_ids.dtype) == (size_px, np.uint8)


def test_the_scene_is_the_same_at_every_size():
    small, large = (render_frame(0, "val", 3, size_px)[1] for size_px in ((128, 256), (256, 512)))
    assert (large[1::2, 1::2] == small).mean() > 0.9


def test_names_follow_the_official_pattern_and_splits_share_no_city():
    for split in CITIES:
        names = [frame_name(split, index) for index in range(200)]
        assert len(set(names)) == 200
        assert all(re.fullmatch(rf"{city}_\d{{6}}_\d{{6}}", stem) for city, stem in names)
        assert len({city for city, _ in names}) == len(CITIES[split]) > 1
        assert len({stem.split("_")[1] for _, stem in names}) > 1
    assert not set(CITIES["train"]) & set(CITIES["val"])
    with pytest.raises(ValueError, match="test"):
        frame_name("test", 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_on_disk_it_looks_like_cityscapes(tmp_path, workers):
    write_city(tmp_path, seed=5, train_frames=3, val_frames=2, size_px=(64, 128), workers=workers)
    images = sorted(path.relative_to(tmp_path) for path in tmp_path.glob("leftImg8bit/*/*/*_leftImg8bit.png"))
    assert len(images) == 5 and len(list(tmp_path.rglob("*.png"))) == 10
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            city, stem = frame_name(split, index)
            image, label_ids = render_frame(5, split, index, (64, 128))
            stored = Image.open(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
            stored_ids = Image.open(tmp_path / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png")
            assert (stored.mode, stored_ids.mode) == ("RGB", "L")
            assert np.array_equal(np.asarray(stored), image) and np.array_equal(np.asarray(stored_ids), label_ids)


def mean_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    ious = [((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum() for c in EVALUATED_IDS]
    return float(np.mean(ious))


def pixels(frames: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Colours (N, 3) and label ids (N,) of all evaluated pixels."""
    colours = np.concatenate([image.reshape(-1, 3) for image, _ in frames])
    label_ids = np.concatenate([label_ids.ravel() for _, label_ids in frames])
    kept = np.isin(label_ids, EVALUATED_IDS)
    return colours[kept], label_ids[kept]


def test_the_colour_of_a_pixel_does_not_tell_its_class(frames):
    """Two classifiers that see one pixel at a time: nearest mean colour, and the likeliest class of a colour cell."""
    (colours, truth), (val_colours, val_truth) = pixels(frames["train"]), pixels(frames["val"])
    means = np.array([colours[truth == class_id].mean(axis=0) for class_id in EVALUATED_IDS])
    nearest = np.stack([((val_colours - mean) ** 2).sum(axis=1) for mean in means]).argmin(axis=0)
    assert mean_iou(np.array(EVALUATED_IDS)[nearest], val_truth) < 0.2

    cells, val_cells = ((c // 16).astype(int) @ [256, 16, 1] for c in (colours, val_colours))
    votes = np.stack([np.bincount(cells[truth == class_id], minlength=4096) for class_id in EVALUATED_IDS])
    for weight in (1.0, votes.sum(axis=1, keepdims=True)):  # by count, and with the classes balanced
        likeliest = (votes / weight).argmax(axis=0)[val_cells]
        assert mean_iou(np.array(EVALUATED_IDS)[likeliest], val_truth) < 0.25
