"""A folder of images without labels: further train frames, which change nothing else, and who trains on them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from segdistill.core.errors import UserError
from segdistill.core.files import read_json, write_json
from segdistill.data.prepared import PreparedData
from segdistill.prepare.run import prepare
from segdistill.student.run import distill
from segdistill.teacher.check import check_teacher
from segdistill.training import job as training_job
from support.city_on_disk import write_city
from support.folder_on_disk import describe, pixels, settings, write_frames, write_image
from support.tiny_city import build_logits, tinier_params

LABELLED = ("a", "b", "c", "d")


@pytest.fixture
def root(tmp_path):
    """A data set of labelled frames, and three images without labels."""
    root = tmp_path / "birds"
    describe(root)
    write_frames(root, LABELLED, ("v",))
    for seed, name in enumerate(("x/2.png", "x/1.png", "y.png"), 50):
        write_image(root / "more" / name, pixels(seed)[0])
    return root


def test_unlabelled_images_are_the_last_train_frames_and_have_no_class(root, tmp_path):
    prepare(settings(root, unlabelled="more"), 0, tmp_path / "out", 1)
    data = PreparedData.open(tmp_path / "out")
    assert data.unlabelled_frames == 3
    assert data.train.names[-3:] == ("more/x/1.png", "more/x/2.png", "more/y.png")
    assert data.frame_groups["train"][-3:] == ("more/x", "more/x", "more")
    for row, seed in zip((-3, -2, -1), (51, 50, 52), strict=True):
        assert np.array_equal(data.train.images[row], pixels(seed)[0])
        assert (data.train.labels[row] == 255).all()
    assert (np.asarray(data.train.labels[:-3]) != 255).any(axis=(1, 2)).all()


def test_unlabelled_images_change_neither_the_other_frames_nor_the_frequencies(root, tmp_path):
    without = prepare(settings(root), 0, tmp_path / "without", 1)
    index = prepare(settings(root, unlabelled="more"), 0, tmp_path / "with", 1)
    assert index["splits"]["train"]["unlabelled"] == 3
    assert "unlabelled" not in without["splits"]["train"]
    assert index["splits"]["train"]["class_frequency"] == without["splits"]["train"]["class_frequency"]
    assert index["splits"]["train"]["frames"][:-3] == without["splits"]["train"]["frames"]
    assert [index["splits"][name] for name in ("holdout", "val")] == [without["splits"][n] for n in ("holdout", "val")]
    assert index["fingerprint"] != without["fingerprint"]
    labelled = PreparedData.open(tmp_path / "without").train
    found = PreparedData.open(tmp_path / "with").train
    assert np.array_equal(found.images[:-3], labelled.images)
    assert np.array_equal(found.labels[:-3], labelled.labels)


def test_unlabelled_images_are_resized_as_the_others(root, tmp_path):
    write_image(root / "more" / "large.png", pixels(9, (12, 20))[0])
    with pytest.raises(UserError, match=r"more/large\.png: size \[12, 20\], but the first frame has \[6, 10\]"):
        prepare(settings(root, unlabelled="more"), 0, tmp_path / "out", 1)
    prepare(settings(root, unlabelled="more", size_px=(6, 10)), 0, tmp_path / "out", 1)
    assert PreparedData.open(tmp_path / "out").train.size_px == (6, 10)


def test_cityscapes_takes_unlabelled_images_too(tmp_path):
    names = ("aachen_000000_000019", "bochum_000000_000313"), ("ulm_000000_000019",)
    write_city(tmp_path / "city", *names)
    image = next((tmp_path / "city" / "leftImg8bit" / "val").rglob("*.png"))
    (tmp_path / "city" / "extra").mkdir()
    shutil.copy(image, tmp_path / "city" / "extra" / "1.png")
    prepare(settings(tmp_path / "city", source="cityscapes", unlabelled="extra"), 0, tmp_path / "out", 1)
    data = PreparedData.open(tmp_path / "out")
    assert np.array_equal(data.train.images[-1], data.val.images[0])


@pytest.mark.parametrize(("folder", "found"), [("images", 5), ("images/val", 1)])
def test_images_of_the_splits_are_refused(root, tmp_path, folder, found):
    first = "train/a" if found > 1 else "val/v"
    message = (
        rf"data\.unlabelled: found '{folder}'; {found} of its images are frames of a split, such as .*/{first}\.png"
    )
    with pytest.raises(UserError, match=message):
        prepare(settings(root, unlabelled=folder), 0, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["less", "", ".", "../birds", "/"])
def test_folder_that_is_not_inside_root_is_refused(root, tmp_path, folder):
    with pytest.raises(UserError, match=r"data\.unlabelled: .*; allowed is a folder of images inside data\.root"):
        prepare(settings(root, unlabelled=folder), 0, tmp_path / "out", 1)


def damage(root, how: str) -> None:
    more = root / "more"
    if how == "no image":
        shutil.rmtree(more)
        more.mkdir()
    elif how == "damaged":
        (more / "y.png").write_bytes((more / "y.png").read_bytes()[:60])
    elif how == "another format":
        (more / "z.tiff").write_bytes(b"")
    elif how == "dead link":
        (more / "z.png").symlink_to("nowhere.png")
    else:
        (more / "linked").symlink_to(root / "images")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no image", "data.unlabelled: .*more holds no JPEG and no PNG"),
        ("damaged", "more/y.png: "),
        ("another format", "more/z.tiff: images are read from files that end in .jpg"),
        ("dead link", "more/z.png: No such file"),
        ("linked folder", "more/linked: a link to a folder, in which DVC sees no changes"),
    ],
)
def test_images_that_cannot_be_read_are_refused(root, tmp_path, how, message):
    damage(root, how)
    with pytest.raises(UserError, match=message):
        prepare(settings(root, unlabelled="more"), 0, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("found", [-1, 99, "2", 1.5, None])
def test_number_of_unlabelled_frames_that_cannot_be_is_refused(root, tmp_path, found):
    prepare(settings(root), 0, tmp_path / "out", 1)
    index = read_json(tmp_path / "out" / "index.json")
    index["splits"]["train"]["unlabelled"] = found
    write_json(tmp_path / "out" / "index.json", index)
    with pytest.raises(UserError, match="unlabelled is .*; allowed is a number of train frames"):
        PreparedData.open(tmp_path / "out")


class DrawnError(Exception):
    """Ends a training where it would begin."""


def test_students_with_a_teacher_train_on_unlabelled_frames_and_controls_do_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {
        "vanilla": {"alpha": 0.0, "lr": 0.01, "teacher": "none"},
        "taught": {"alpha": 0.5, "lr": 0.01, "teacher": "views"},
    }
    params = tinier_params(runs=runs)
    prepare(params.data, 0, tmp_path / "data" / "prepared", 1)
    index = read_json("data/prepared/index.json")
    index["splits"]["train"]["unlabelled"] = 2
    write_json("data/prepared/index.json", index)
    frames = len(index["splits"]["train"]["frames"])
    check_teacher(params)
    build_logits(params)
    drawn = {}

    def train(job, checkpointer):
        seen = [job.batches.load(step).indices.frames for step in range(40)]
        drawn[job.name] = set(np.concatenate(seen).tolist())
        raise DrawnError

    monkeypatch.setattr(training_job, "train", train)
    for run in runs:
        with pytest.raises(DrawnError):
            distill(params, run)
    assert drawn == {"distill/vanilla": set(range(frames - 2)), "distill/taught": set(range(frames))}
