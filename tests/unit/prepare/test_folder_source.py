"""A folder of one's own: which files are frames, which classes their pixels are, and what is refused."""

from __future__ import annotations

import os
import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.data.prepared import open_split, read_classes
from segdistill.prepare import cityscapes
from segdistill.prepare.folder import open_folder
from segdistill.prepare.run import prepare as prepare_in_processes
from support.city_on_disk import write_city
from support.folder_on_disk import DESCRIPTION, classes_of, describe, pixels, settings, write_frames, write_image

SPLITS = ("train", "holdout", "val")


def prepare(root: Path, out: Path, **changed) -> dict:
    return prepare_in_processes(settings(root, **changed), 0, out, 1)


def names(root: Path, split: str) -> list[str]:
    frames, faults = open_folder(str(root)).list_frames(split)
    assert faults == []
    return [frame.name for frame in frames]


def faults_of(root: Path) -> str:
    """What preparing `root` is refused for, without the place of the temporary folder."""
    with pytest.raises(UserError) as refused:
        prepare(root, root.parent / "refused")
    assert not (root.parent / "refused").exists()
    return str(refused.value).replace(f"{root}/", "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three frames to train on and one of val, in the layout that nothing has to be said about."""
    describe(tmp_path / "birds")
    return tmp_path / "birds"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def test_pixels_and_classes_are_those_of_the_files(root, out):
    written = write_frames(root, ("a", "b", "c 3"), ("ü",))
    index = prepare(root, out)
    assert sorted(frame["name"] for split in SPLITS for frame in index["splits"][split]["frames"]) == sorted(written)
    assert len(index["splits"]["holdout"]["frames"]) == 1
    assert [frame["name"] for frame in index["splits"]["val"]["frames"]] == ["ü"]
    for name in SPLITS:
        split = open_split(name, out)
        for row, frame in enumerate(split.names):
            np.testing.assert_array_equal(split.images[row], written[frame][0])
            np.testing.assert_array_equal(split.labels[row], classes_of(written[frame][1]))
    table = read_classes(out)
    assert table.names == ("grass", "barn owl", "straße")
    assert table.label_ids == (1, 2, 40)
    assert table.colors == ((0, 160, 0), (200, 180, 90), (90, 90, 90))
    assert len(index["splits"]["val"]["class_frequency"]) == 3


def test_bytes_do_not_depend_on_workers(root, out, tmp_path):
    write_frames(root, tuple("abcdefg"), ("v",))
    prepare(root, out)
    prepare_in_processes(settings(root), 0, tmp_path / "by_two", 2)
    files = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert len(files) == 7
    assert all((out / file).read_bytes() == (tmp_path / "by_two" / file).read_bytes() for file in files)


def test_cityscapes_described_as_a_folder_gives_the_same_arrays(tmp_path):
    train = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "bochum_000000_000885")
    write_city(tmp_path / "city", train, ("ulm_000000_000019", "ulm_000001_000019"))
    official = prepare(tmp_path / "city", tmp_path / "official", source="cityscapes")
    classes = [
        {"name": row.name, "ids": [row.id], "color": list(row.color)}
        for row in sorted(cityscapes.LABELS, key=lambda row: row.train_id)
        if 0 <= row.train_id < 255
    ]
    describe(
        tmp_path / "city",
        classes=classes,
        ignore=[row.id for row in cityscapes.LABELS if row.train_id == 255],
        images="leftImg8bit/{split}/*/*_leftImg8bit.png",
        labels="gtFine/{split}/*/*_gtFine_labelIds.png",
    )
    described = prepare(tmp_path / "city", tmp_path / "described")
    assert read_classes(tmp_path / "described") == cityscapes.TABLE
    for split in SPLITS:
        for kind in ("images", "labels"):
            of_both = [np.load(tmp_path / which / split / f"{kind}.npy") for which in ("official", "described")]
            np.testing.assert_array_equal(*of_both)
        # The folder of a city is its group, so the same frames are held out.
        frames = [[row["city"] for row in index["splits"][split]["frames"]] for index in (official, described)]
        assert frames[0] == frames[1]


def test_a_pixel_that_stands_for_another_class_changes_the_fingerprint(root, out):
    write_frames(root, ("a", "b"), ("v",))
    fingerprints = [prepare(root, out)["fingerprint"]]
    described = DESCRIPTION["classes"]
    describe(root, classes=described[::-1])
    fingerprints.append(prepare(root, out)["fingerprint"])
    describe(root, ignore=[0], classes=[*described, {"name": "edge", "ids": 255, "color": "#ffffff"}])
    fingerprints.append(prepare(root, out)["fingerprint"])
    assert len(set(fingerprints)) == 3
    describe(root, classes=[entry | {"name": f"other {n}"} for n, entry in enumerate(described)])
    assert prepare(root, out)["fingerprint"] == fingerprints[0]


def test_colored_labels_and_photographs_as_jpeg(root, out):
    describe(
        root,
        labels_are="colors",
        classes=[
            {"name": "land", "color": [9, 9, 9], "colors": [[128, 0, 0], "#808000"]},
            {"name": "sea", "color": [0, 0, 192]},
        ],
        ignore=[[0, 0, 0]],
        images="701_StillsRaw_full/*.jpg",
        labels="LabeledApproved_full/*_L.png",
        val_fraction=0.34,
    )
    colors = np.array([[[128, 0, 0], [128, 128, 0]], [[0, 0, 192], [0, 0, 0]]], np.uint8).repeat(4, 0).repeat(4, 1)
    classes = np.array([[0, 0], [1, 255]], np.uint8).repeat(4, 0).repeat(4, 1)
    for number in range(3):
        write_image(root / "701_StillsRaw_full" / f"{number}.jpg", colors, quality=95)
        write_image(root / "LabeledApproved_full" / f"{number}_L.png", colors)
    palette = Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(root / "LabeledApproved_full" / "1_L.png")
    prepare(root, out)
    decoded = np.asarray(Image.open(root / "701_StillsRaw_full" / "0.jpg"))
    for name in SPLITS:
        split = open_split(name, out)
        assert len(split) == 1
        np.testing.assert_array_equal(split.labels[0], classes)
        np.testing.assert_array_equal(split.images[0], decoded)
    assert read_classes(out).label_ids == (0, 1)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_photographs_of_any_8_bit_mode(root, out, mode):
    write_frames(root, ("a", "b"), ("v",))
    (root / "images" / "val" / "v.png").unlink()
    photograph = Image.fromarray(pixels(5)[0]).convert(mode)
    photograph.save(root / "images" / "val" / ("v.JPEG" if mode == "CMYK" else "v.PNG"))
    file = next((root / "images" / "val").iterdir())
    prepare(root, out)
    np.testing.assert_array_equal(open_split("val", out).images[0], np.asarray(Image.open(file).convert("RGB")))


def test_a_photograph_is_turned_as_its_exif_says(root, out):
    write_frames(root, ("a", "b"), ("v",))
    image = np.zeros((10, 6, 3), np.uint8)
    image[0] = 200  # the top as stored, the right side when turned by 90 degrees clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    (root / "images" / "val" / "v.png").unlink()
    write_image(root / "images" / "val" / "v.png", image, exif=exif)
    prepare(root, out)
    (stored,) = open_split("val", out).images
    assert stored.shape == (6, 10, 3)
    assert (stored[:, -1] == 200).all()
    assert not stored[:, :-1].any()


def test_frames_are_told_apart_by_folder_and_name(root):
    describe(root, images="./*/rgb/{split}/*_i.png", labels="*//mask/{split}/*_m.png")
    write_image(root / "dawn" / "rgb" / "train" / "_i.png", pixels(0)[0])  # the star stands for something
    for video in ("dawn", "dusk"):
        for split, name in (("train", "0"), ("train", "1"), ("val", "2")):
            image, label_ids = pixels(0)
            write_image(root / video / "rgb" / split / f"{name}_i.png", image)
            write_image(root / video / "mask" / split / f"{name}_m.png", label_ids)
    assert names(root, "train") == ["dawn_0", "dawn_1", "dusk_0", "dusk_1"]
    assert [frame.city for frame in open_folder(str(root)).list_frames("val")[0]] == ["dawn", "dusk"]


def test_a_group_is_what_the_expression_captures(root):
    describe(root, group="^([^_]+)_")
    write_frames(root, ("v1_000", "v1_001", "v2_000"), ("v3_000",))
    assert [frame.city for frame in open_folder(str(root)).list_frames("train")[0]] == ["v1", "v1", "v2"]
    write_frames(root, ("plain",), ())
    assert "images/train/plain.png: group '^([^_]+)_' does not match its name 'plain'" in faults_of(root)


def test_lists_choose_and_split_frames(root):
    describe(root, images="JPEGImages/*.png", labels="SegmentationClass/*.png", list="sets/{split}.txt")
    for number in range(4):
        image, label_ids = pixels(number)
        write_image(root / "JPEGImages" / f"{number}.png", image)
        if number < 3:  # the last one is in no list and needs no label
            write_image(root / "SegmentationClass" / f"{number}.png", label_ids)
    (root / "sets").mkdir()
    (root / "sets" / "train.txt").write_text("1\n0.png\n\n")
    (root / "sets" / "val.txt").write_text("2\r\n")
    assert (names(root, "train"), names(root, "val")) == (["0", "1"], ["2"])
    (root / "sets" / "val.txt").write_text("2\n3\n7\n1\n")
    found = faults_of(root)
    assert "sets/val.txt:3: no image is named '7'" in found
    assert "JPEGImages/3.png: image without a label" in found
    assert "frame '1' is in both splits, train and val" in found
    (root / "sets" / "val.txt").unlink()
    assert "sets/val.txt: No such file or directory; list: names it" in faults_of(root)


def test_a_fraction_for_val_takes_whole_groups_whatever_the_seed(root):
    describe(root, val_fraction=0.3, group="^(.)", images="images/*", labels="labels/*")
    for name in (f"{group}{number}" for group in "abcde" for number in range(4)):
        image, label_ids = pixels(0)
        write_image(root / "images" / f"{name}.png", image)
        write_image(root / "labels" / f"{name}.png", label_ids)
    val, train = names(root, "val"), names(root, "train")
    assert len(val) == 6
    assert sorted(val + train) == sorted(f"{group}{number}" for group in "abcde" for number in range(4))
    assert len({name[0] for name in val}) == 2, "one group, and the end of another"
    assert names(root, "val") == val


def test_other_names_of_splits_hidden_files_and_both_ways_to_write_a_letter(root):
    describe(root, splits={"train": "training", "val": "validation"})
    write_frames(root, ("a",), ("v",))
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / kind / "training")
        (root / kind / "val").rename(root / kind / "validation")
    for kind, form in (("images", "NFC"), ("labels", "NFD")):
        name = unicodedata.normalize(form, "ö.png")
        write_image(root / kind / "training" / name, pixels(1)[kind == "labels"])
        (root / kind / "training" / "._ö.png").write_bytes(b"of a Mac")
        (root / kind / "training" / "Thumbs.db").write_bytes(b"of Windows")
    assert names(root, "train") == ["a", "ö"]
    source = open_folder(str(root))
    assert pickle.loads(pickle.dumps(source)).list_frames("val") == source.list_frames("val")


def test_all_faults_of_frames_are_told_together(root):
    write_frames(root, tuple("abcdefgh"), ("v",))
    image, label_ids = pixels(0)
    (root / "labels" / "train" / "a.png").unlink()
    (root / "images" / "train" / "b.png").unlink()
    write_image(root / "labels" / "train" / "c.png", label_ids + (label_ids == 40))
    write_image(root / "labels" / "train" / "d.png", label_ids[:, 1:])
    write_image(root / "images" / "train" / "e.png", image[:4])
    write_image(root / "labels" / "train" / "e.png", label_ids[:4])
    (root / "images" / "train" / "f.png").write_bytes(b"GIF89a")
    write_image(root / "labels" / "train" / "g.png", image)
    write_image(root / "images" / "train" / "h.png", label_ids.astype(np.uint16))
    found = faults_of(root)
    for said in (
        "images/train/a.png: image without a label",
        "labels/train/b.png: label without an image",
        "labels/train/c.png: label ids 41 are not in the table; allowed: 0 to 2, 9, 40, 255",
        "labels/train/d.png: size [6, 9], but its image has [6, 10]",
        "images/train/e.png: size [4, 10], but the first frame has [6, 10]; data.size_px can resize all",
        "images/train/f.png: no readable JPEG or PNG (6 bytes)",
        "labels/train/g.png: mode RGB, 8 bit; labels have to be 8-bit greyscale or palette indices",
        "images/train/h.png: mode I;16, 16 bit; allowed are 8 bits per channel",
    ):
        assert f"- {said}" in found, said
    assert found.count("\n") == 8


def test_two_files_of_one_frame_are_refused(root):
    write_frames(root, ("a", "b"), ("v",))
    write_image(root / "images" / "train" / "a.jpg", pixels(0)[0])
    assert "images/train/a.png: is of the same frame as" in faults_of(root)
    (root / "images" / "train" / "a.jpg").unlink()
    describe(root, images="images/{split}/*/*.png", labels="labels/{split}/*/*.png")
    for name in ("x_y/z", "x/y_z"):
        write_image(root / "images" / "train" / f"{name}.png", pixels(0)[0])
        write_image(root / "labels" / "train" / f"{name}.png", pixels(0)[1])
    assert "gives the name 'x_y_z' that" in faults_of(root)


def test_a_name_that_is_no_text_is_refused(root):
    write_frames(root, ("a", "b"), ("v",))
    path = root / "images" / "train" / os.fsdecode(b"\xff.png")
    try:
        write_image(path, pixels(0)[0])
    except OSError:
        pytest.skip("this file system takes no such name")
    assert r"the name 'images/train/\udcff.png' is not UTF-8" in faults_of(root)


def test_files_in_no_place_are_told(root):
    assert "nothing there is named like images: images/train/*" in faults_of(root)
    (root / "classes.yaml").unlink()
    with pytest.raises(UserError, match=r"birds/classes\.yaml: no such file; it names the classes: docs/own-data\.md"):
        open_folder(str(root))
    for given, said in ((None, "'' is not set"), (root / "classes.yaml", "does not exist")):
        with pytest.raises(UserError, match=rf"data\.root: .*{said}; allowed: a folder with classes\.yaml"):
            open_folder(given and str(given))
