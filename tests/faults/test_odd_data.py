"""Damaged zips and prepared data are refused; odd but sound data work."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.prepare import cityscapes
from support.city_on_disk import image_path, label_path, zip_city
from support.finished_project import IMAGE, LABEL, VAL, Project

IMAGE_ZIP, LABEL_ZIP = f"zips/{cityscapes.IMAGE_ZIP}", f"zips/{cityscapes.LABEL_ZIP}"
MEMBER = IMAGE.removeprefix("raw/")


def zipped(city: Project) -> None:
    """The data as its two zips instead."""
    zip_city(city.path("raw"), city.path("zips"))
    city.set_params(data__root="zips")


ZIPS = {
    "a missing member": (
        lambda city: (city.path(LABEL).unlink(), zipped(city)),
        [f"{IMAGE_ZIP}: {MEMBER}: image without a label"],
    ),
    "a truncated zip": (
        lambda city: (zipped(city), city.cut_short(LABEL_ZIP)),
        [f"{LABEL_ZIP}: no readable zip"],
    ),
    "no zip": (
        lambda city: (zipped(city), city.write(IMAGE_ZIP, b"PK but no zip")),
        [f"{IMAGE_ZIP}: no readable zip"],
    ),
    "one zip of two": (
        lambda city: (zipped(city), city.path(LABEL_ZIP).unlink()),
        [f"data.root: 'zips' holds {cityscapes.IMAGE_ZIP}", cityscapes.LABEL_ZIP],
    ),
    "a damaged member": (
        lambda city: (city.write(IMAGE, b"no image"), zipped(city)),
        [f"{IMAGE_ZIP}: {MEMBER}: no readable PNG"],
    ),
}


@pytest.mark.parametrize("name", ZIPS)
def test_damaged_zips_are_refused(city, refused, name):
    change, parts = ZIPS[name]
    change(city)
    refused("prepare", parts)


PREPARED = {
    "truncated images": (
        lambda project: project.cut_short("data/prepared/train/images-00000.npy"),
        ["data/prepared/train/images-00000.npy: unreadable", "file size", "dvc repro prepare"],
    ),
    "no labels": (
        lambda project: project.path("data/prepared/val/labels-00000.npy").unlink(),
        ["data/prepared/val/labels-00000.npy: unreadable", "dvc repro prepare"],
    ),
    "truncated index": (
        lambda project: project.cut_short("data/prepared/index.json"),
        ["data/prepared/index.json: no readable JSON", "dvc repro prepare"],
    ),
    "nothing": (
        lambda project: shutil.rmtree(project.path("data/prepared")),
        ["data/prepared/index.json: no prepared data", "dvc repro prepare"],
    ),
}


@pytest.mark.parametrize("name", PREPARED)
def test_damaged_prepared_data_are_refused(project, refused, name):
    change, parts = PREPARED[name]
    change(project)
    refused("distill --run vanilla", parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [(None, "metrics/benchmark.json: no such file"), (b'{"networks": {', "metrics/benchmark.json: no readable JSON")],
    ids=["missing", "truncated"],
)
def test_damaged_metrics_are_refused(project, refused, content, parts):
    if content is not None:  # the project has not run benchmark
        project.write("metrics/benchmark.json", content)
    refused("report", [parts, "dvc repro"])


def as_palette(path: Path) -> None:
    image = Image.open(path)
    image.putpalette([value for color in cityscapes.PALETTE.tolist() for value in color])
    image.save(path)


def test_palette_indices_are_label_ids(city):
    expected = cityscapes.TRAIN_ID_OF_LABEL_ID[np.asarray(Image.open(label_path(city.path("raw"), "val", VAL[0])))]
    as_palette(label_path(city.path("raw"), "val", VAL[0]))
    done = city.call("prepare")
    assert done.exit_code == 0, done.err
    np.testing.assert_array_equal(np.load(city.path("data/prepared/val/labels-00000.npy"))[0], expected)


def test_root_may_be_a_link_and_have_any_name(city):
    city.path("raw").rename(city.path("Straßen und 街道"))
    city.path("here").symlink_to(city.path("Straßen und 街道"))
    for root in ("Straßen und 街道", "here"):
        city.set_params(data__root=root)
        done = city.call("prepare")
        assert done.exit_code == 0, done.err
    stored = np.load(city.path("data/prepared/val/images-00000.npy"))[0]
    np.testing.assert_array_equal(stored, np.asarray(Image.open(image_path(city.path("here"), "val", VAL[0]))))
