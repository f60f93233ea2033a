"""Bad frames: `prepare` names the file, what it found and what is allowed, and leaves earlier outputs.

unit/prepare has errors that come together; here a stage meets them one by one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.city_on_disk import random_frame, write_frame
from support.finished_project import IMAGE, LABEL, SIZE_PX, TRAIN, VAL, Project

STEM = TRAIN[1]
PHOTOGRAPH, LABEL_IDS = random_frame(9, SIZE_PX)


def saved_as(name: str, image: Image.Image):
    """Return a change that saves `image` as `name`."""
    return lambda city: image.save(city.path(name))


def with_ids(*ids: int) -> Image.Image:
    label_ids = LABEL_IDS.copy()
    label_ids[0, : len(ids)] = ids
    return Image.fromarray(label_ids)


def flipped_bits(city: Project) -> None:
    content = bytearray(city.path(IMAGE).read_bytes())
    content[len(content) // 2] ^= 0x10
    city.write(IMAGE, bytes(content))


def renamed(name: str, other: str):
    return lambda city: city.path(name).rename(city.path(other))


def looping(name: str):
    """Return a change that replaces `name` by a link to itself."""

    def change(city: Project) -> None:
        path = city.path(name)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(path)

    return change


def in_place_of(name: str, make: Callable[[Path], object]):
    """Return a change that removes the file `name` and calls `make` with its path."""

    def change(city: Project) -> None:
        city.path(name).unlink()
        make(city.path(name))

    return change


def without(name: str):
    return lambda city: shutil.rmtree(city.path(name)) if city.path(name).is_dir() else city.path(name).unlink()


def in_both_halves(change, image: str, label: str):
    def both(city: Project) -> None:
        change(image)(city)
        change(label)(city)

    return both


def named_muenchen(city: Project) -> None:
    for top, suffix in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
        folder = city.path(f"raw/{top}/train/münchen")
        folder.mkdir()
        (folder / f"münchen_000000_000019_{suffix}.png").touch()


# What is broken, and what the message says: the file, what was found, what is allowed.
FRAMES = {
    "image without a label": (without(LABEL), [IMAGE, "image without a label"]),
    "label without an image": (without(IMAGE), [LABEL, "label without an image"]),
    "corrupt": (flipped_bits, [IMAGE, "broken data stream"]),
    "truncated": (lambda city: city.cut_short(IMAGE), [IMAGE, "truncated"]),
    "truncated label": (lambda city: city.cut_short(LABEL, 0.8), [LABEL, "truncated"]),
    "empty": (lambda city: city.write(IMAGE, b""), [IMAGE, "no readable PNG (0 bytes)"]),
    "text": (lambda city: city.write(LABEL, b"no image\n"), [LABEL, "no readable PNG (9 bytes)"]),
    "a JPEG by another name": (
        lambda city: Image.fromarray(PHOTOGRAPH).save(city.path(IMAGE), format="JPEG"),
        [IMAGE, "no readable PNG"],
    ),
    "16-bit image": (
        saved_as(IMAGE, Image.fromarray(LABEL_IDS.astype(np.uint16))),
        [IMAGE, "mode I;16, 16 bit", "a photograph has to be RGB, 8 bit"],
    ),
    "16-bit label": (
        saved_as(LABEL, Image.fromarray(LABEL_IDS.astype(np.uint16))),
        [LABEL, "mode I;16, 16 bit", "labels have to be 8-bit greyscale or palette"],
    ),
    "palette image": (saved_as(IMAGE, Image.fromarray(PHOTOGRAPH).convert("P")), [IMAGE, "mode P", "has to be RGB"]),
    "grey image": (saved_as(IMAGE, Image.fromarray(PHOTOGRAPH).convert("L")), [IMAGE, "mode L", "has to be RGB"]),
    "RGBA image": (saved_as(IMAGE, Image.fromarray(PHOTOGRAPH).convert("RGBA")), [IMAGE, "mode RGBA", "has to be RGB"]),
    "RGBA label": (
        saved_as(LABEL, Image.fromarray(PHOTOGRAPH).convert("RGBA")),
        [LABEL, "mode RGBA", "have to be 8-bit"],
    ),
    "coloured label": (saved_as(LABEL, Image.fromarray(PHOTOGRAPH)), [LABEL, "mode RGB", "have to be 8-bit greyscale"]),
    "ids outside the table": (
        saved_as(LABEL, with_ids(34, 255)),
        [LABEL, "label ids 34, 255 are not in the table", "allowed: 0 to 33"],
    ),
    "image of another size": (
        saved_as(IMAGE, Image.fromarray(PHOTOGRAPH[:, :15])),
        [LABEL, "size [8, 16], but its image has [8, 15]"],
    ),
    "frame of another size": (
        lambda city: write_frame(city.path("raw"), "val", VAL[0], *random_frame(3, (6, 16))),
        [f"{VAL[0]}_leftImg8bit.png: size [6, 16], but the first frame has [8, 16]", "data.size_px can resize all"],
    ),
    "no val": (in_both_halves(without, "raw/leftImg8bit/val", "raw/gtFine/val"), ["the val split has no frames"]),
    "no train": (
        in_both_halves(without, "raw/leftImg8bit/train", "raw/gtFine/train"),
        ["the train split has no frames"],
    ),
    "one train frame": (
        in_both_halves(without, "raw/leftImg8bit/train/bochum", "raw/gtFine/train/bochum"),
        ["data.holdout_fraction", "of 1 train frame", TRAIN[0], "at least 2 are needed"],
    ),
    "void alone": (
        lambda city: write_frame(city.path("raw"), "val", VAL[0], PHOTOGRAPH, np.zeros(SIZE_PX, np.uint8)),
        ["the val split: every pixel of its 1 frames is ignored"],
    ),
    "suffix in capitals": (
        renamed(IMAGE, IMAGE.replace(".png", ".PNG")),
        [IMAGE.replace(".png", ".PNG"), "<city>_<sequence>_<frame>_leftImg8bit.png", "in lower case"],
    ),
    "label suffix in capitals": (renamed(LABEL, LABEL.replace(".png", ".PNG")), [".PNG", "in lower case"]),
    "no official name": (
        renamed(IMAGE, "raw/leftImg8bit/train/bochum/bochum_1_1_leftImg8bit.png"),
        ["bochum_1_1_leftImg8bit.png", "does not follow <city>_<sequence>_<frame>"],
    ),
    "in another city's folder": (
        renamed(IMAGE, f"raw/leftImg8bit/train/aachen/{STEM}_leftImg8bit.png"),
        [f"train/aachen/{STEM}", "another city, 'aachen'"],
    ),
    "city with an umlaut": (named_muenchen, ["'münchen_000000_000019' does not follow <city>_<sequence>_<frame>"]),
    "folder that is a link": (
        lambda city: (
            city.path("raw/gtFine/train/bochum").rename(city.path("elsewhere")),
            city.path("raw/gtFine/train/bochum").symlink_to(city.path("elsewhere")),
        ),
        ["raw/gtFine/train/bochum: a link to a folder, in which DVC sees no changes", "set data.root to", "cp -rs "],
    ),
    "folder that links back": (
        lambda city: city.path("raw/gtFine/train/again").symlink_to(".."),
        ["raw/gtFine/train/again: a link to a folder"],
    ),
    "file that links to itself": (looping(IMAGE), [IMAGE, "symbolic links"]),
    "named pipe": (in_place_of(IMAGE, os.mkfifo), [f"{IMAGE}: no file, but a pipe or a device"]),
    "device": (
        in_place_of(LABEL, lambda path: path.symlink_to(os.devnull)),
        [f"{LABEL}: no file, but a pipe or a device"],
    ),
    "city that links to itself": (
        in_both_halves(looping, "raw/leftImg8bit/train/bochum", "raw/gtFine/train/bochum"),
        ["raw/leftImg8bit/train/bochum: a link that leads nowhere"],
    ),
    "split that links to itself": (
        looping("raw/gtFine/val"),
        ["raw/gtFine/val: a link that leads nowhere"],
    ),
    "root that links to itself": (
        looping("raw"),
        ["data.root: 'raw' is a link that leads nowhere", "allowed: a folder with leftImg8bit/ and gtFine/"],
    ),
    "no labels at all": (without("raw/gtFine"), ["data.root: 'raw' holds leftImg8bit/", "allowed: a folder with"]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_bad_frames_are_refused(city, refused, name):
    change, parts = FRAMES[name]
    change(city)
    refused("prepare", parts)
