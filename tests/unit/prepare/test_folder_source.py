"""A folder of your own images: which files are frames, which classes their pixels are, what is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.core.log import logger
from segdistill.data.prepared import PreparedData, Split
from segdistill.formats.classes import ClassTable
from segdistill.prepare import cityscapes
from segdistill.prepare.folder import open_folder
from segdistill.prepare.run import prepare as prepare_in_processes
from support.city_on_disk import write_city
from support.folder_on_disk import DESCRIPTION, classes_of, describe, pixels, settings, write_frames, write_image

SPLITS = ("train", "holdout", "val")


def open_split(name: str, out: Path) -> Split:
    return getattr(PreparedData.open(out), name)


def read_classes(out: Path) -> ClassTable:
    return PreparedData.open(out).table


def prepare(root: Path, out: Path, **changed) -> dict:
    return prepare_in_processes(settings(root, **changed), 0, out, 1)


def names(root: Path, split: str) -> list[str]:
    frames, errors = open_folder(str(root)).list_frames(split)
    assert errors == []
    return [frame.name for frame in frames]


def errors_of(root: Path) -> str:
    """Return the message that refuses `root`, without the path of the temporary folder."""
    with pytest.raises(UserError) as refused:
        prepare(root, root.parent / "refused")
    assert not (root.parent / "refused").exists()
    return str(refused.value).replace(f"{root}/", "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a description of the default layout."""
    describe(tmp_path / "birds")
    return tmp_path / "birds"


@pytest.fixture
def warnings(monkeypatch):
    """Collect warnings; called, it returns them."""
    said: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *values: said.append(text % values))
    return lambda: "\n".join(said)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def test_stored_arrays_equal_the_files(root, out):
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
            of_both = [np.load(tmp_path / which / split / f"{kind}-00000.npy") for which in ("official", "described")]
            np.testing.assert_array_equal(*of_both)
        # The folder of a city is its group, so the same frames are held out.
        frames = [[row["city"] for row in index["splits"][split]["frames"]] for index in (official, described)]
        assert frames[0] == frames[1]


def test_other_classes_change_the_fingerprint(root, out):
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


def test_colored_labels_and_jpeg_images(root, out):
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
def test_images_of_any_8_bit_mode_are_read(root, out, mode):
    write_frames(root, ("a", "b"), ("v",))
    (root / "images" / "val" / "v.png").unlink()
    photograph = Image.fromarray(pixels(5)[0]).convert(mode)
    photograph.save(root / "images" / "val" / ("v.JPEG" if mode == "CMYK" else "v.PNG"))
    file = next((root / "images" / "val").iterdir())
    prepare(root, out)
    np.testing.assert_array_equal(open_split("val", out).images[0], np.asarray(Image.open(file).convert("RGB")))


def test_names_join_folder_and_file(root):
    describe(root, images="./*/rgb/{split}/*_i.png", labels="*//mask/{split}/*_m.png")
    write_image(root / "dawn" / "rgb" / "train" / "_i.png", pixels(0)[0])  # the star matches a text
    for video in ("dawn", "dusk"):
        for split, name in (("train", "0"), ("train", "1"), ("val", "2")):
            image, label_ids = pixels(0)
            write_image(root / video / "rgb" / split / f"{name}_i.png", image)
            write_image(root / video / "mask" / split / f"{name}_m.png", label_ids)
    assert names(root, "train") == ["dawn_0", "dawn_1", "dusk_0", "dusk_1"]
    assert [frame.city for frame in open_folder(str(root)).list_frames("val")[0]] == ["dawn", "dusk"]


def test_group_is_what_the_expression_captures(root):
    describe(root, group="^([^_]+)_")
    write_frames(root, ("v1_000", "v1_001", "v2_000"), ("v3_000",))
    assert [frame.city for frame in open_folder(str(root)).list_frames("train")[0]] == ["v1", "v1", "v2"]
    write_frames(root, ("plain",), ())
    assert "images/train/plain.png: group '^([^_]+)_' does not match its name 'plain'" in errors_of(root)
    describe(root, group="^(?:plain|(v[0-9]))")  # matches, but its parentheses match nothing
    assert "images/train/plain.png: group '^(?:plain|(v[0-9]))' does not match its name 'plain'" in errors_of(root)


def test_lists_choose_the_frames_of_splits(root):
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
    found = errors_of(root)
    assert "sets/val.txt:3: no image is named '7'" in found
    assert "JPEGImages/3.png: image without a label" in found
    assert "frame '1' is in both splits, train and val" in found
    (root / "sets" / "val.txt").unlink()
    assert "sets/val.txt: No such file or directory; list: names it" in errors_of(root)


def write_listed(root: Path, frames: Iterable[str]) -> None:
    """Describe and write frames that text files choose from; a test writes those."""
    describe(root, images="JPEGImages/*.png", labels="SegmentationClass/*.png", list="{split}.txt")
    for number, name in enumerate(frames):
        image, label_ids = pixels(number)
        write_image(root / "JPEGImages" / f"{name}.png", image)
        write_image(root / "SegmentationClass" / f"{name}.png", label_ids)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("1\n0\n", "2\n"),
        ("1.png\n0.png\n", "2.PNG\n"),
        ("/1.png\n./0\n", "\ufeff2\r\n"),
        ("JPEGImages/1.png\nJPEGImages/0.png\n", "/srv/VOC2012/JPEGImages/2.png\n"),
        (
            "JPEGImages/1.png SegmentationClass/1.png\n/JPEGImages/0.png\t/SegmentationClass/0.png\n",
            "/JPEGImages/2.png,/SegmentationClass/2.png\n",
        ),
        ("# train frames\n1\n\n0\n1\n", "2"),
    ],
    ids=["names", "suffixes", "slashes", "paths", "two columns", "comments and repeats"],
)
def test_list_names_frames_in_any_public_form(root, train, val):
    write_listed(root, ("0", "1", "2"))
    (root / "train.txt").write_text(train)
    (root / "val.txt").write_text(val, encoding="utf-8")
    assert (names(root, "train"), names(root, "val")) == (["0", "1"], ["2"])


def test_list_with_the_label_of_another_frame_is_refused(root):
    write_listed(root, ("0", "1", "2"))
    (root / "train.txt").write_text("JPEGImages/1.png SegmentationClass/0.png\n1 -1\n")
    (root / "val.txt").write_text("2\n")
    found = errors_of(root)
    assert "train.txt:1: 'SegmentationClass/0.png' is not the label of 'JPEGImages/1.png'" in found
    assert "train.txt:2: '-1' is not the label of '1'" in found


def test_names_in_a_list_may_have_spaces_and_any_form_of_a_letter(root):
    write_listed(root, ("first frame", "cafe\u0301, rear", "2"))
    lines = [
        "JPEGImages/first frame.png SegmentationClass/first frame.png",
        "/srv/JPEGImages/caf\u00e9, rear.png, /srv/SegmentationClass/cafe\u0301, rear.png",
    ]
    (root / "train.txt").write_text("\n".join(lines), encoding="utf-8")
    (root / "val.txt").write_text("2\n")
    assert names(root, "train") == ["caf\u00e9, rear", "first frame"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "names no frame; list: names it"), (b"# later\n\n", "names no frame"), (b"\xff\xfe0\0", "not UTF-8 text")],
)
def test_list_that_names_nothing_is_refused(root, content, said):
    write_listed(root, ("0", "1"))
    (root / "train.txt").write_text("0\n1\n")
    (root / "val.txt").write_bytes(content)
    found = errors_of(root)
    assert f"(1):\n  - val.txt: {said}" in found


def test_list_in_a_linked_folder_is_refused(root, tmp_path):
    describe(root, images="images/*", labels="labels/*", list="sets/{split}.txt")
    for number in range(2):
        image, label_ids = pixels(number)
        write_image(root / "images" / f"{number}.png", image)
        write_image(root / "labels" / f"{number}.png", label_ids)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "train.txt").write_text("0\n")
    (tmp_path / "elsewhere" / "val.txt").write_text("1\n")
    (root / "sets").symlink_to(tmp_path / "elsewhere")
    assert "  - sets: a link to a folder, in which DVC sees no changes" in errors_of(root)


def test_frame_whose_files_are_links_to_nowhere_is_not_left_out(root, tmp_path):
    write_frames(root, ("0", "1", "2"), ("3",))
    for kind in ("images", "labels"):
        path = root / kind / "train" / "1.png"
        path.unlink()
        path.symlink_to(tmp_path / "gone.png")
    found = errors_of(root)
    for kind in ("images", "labels"):
        assert f"{kind}/train/1.png: a link that leads nowhere" in found


def write_drives(root: Path, lengths: dict[str, int], **described) -> None:
    """Write frames of several drives, such as a_0, into images/ and labels/."""
    describe(root, group="^([^_]+)_", **described)
    for name in (f"{drive}_{number}" for drive, length in lengths.items() for number in range(length)):
        write_image(root / "images" / f"{name}.png", pixels(0)[0])
        write_image(root / "labels" / f"{name}.png", pixels(0)[1])


@pytest.mark.parametrize(
    ("lengths", "fraction", "val_frames"),
    [(dict.fromkeys("abcde", 4), 0.3, 8), (dict.fromkeys("abc", 10), 0.2, 10), ({"a": 2, "b": 98}, 0.3, 2)],
)
def test_val_fraction_takes_whole_groups(root, lengths, fraction, val_frames):
    write_drives(root, lengths, val_fraction=fraction)
    val, train = names(root, "val"), names(root, "train")
    assert len(val) == val_frames
    assert len(val + train) == sum(lengths.values())
    assert not {name[0] for name in val} & {name[0] for name in train}
    assert names(root, "val") == val


def test_val_fraction_of_a_single_group_is_refused(root):
    write_drives(root, {"a": 5}, val_fraction=0.2)
    assert "val_fraction: all 5 frames are of one group, 'a', and groups are taken whole" in errors_of(root)


def test_holdout_takes_whole_groups(root, out, warnings):
    write_drives(root, {"a": 3, "b": 3, "c": 3, "d": 3}, val_fraction=0.25)
    splits = prepare(root, out, holdout_fraction=0.3)["splits"]
    drives = {split: {frame["city"] for frame in splits[split]["frames"]} for split in SPLITS}
    assert [len(drives[split]) for split in SPLITS] == [2, 1, 1]
    assert len(set.union(*drives.values())) == 4
    assert not warnings()


@pytest.mark.parametrize(
    ("lengths", "held_out", "said"),
    [
        ({"a": 10, "v": 2}, ["a_8", "a_9"], "all 10 train frames are of one group, 'a'; its last 2 are held out"),
        ({"a": 9, "b": 10, "v": 1}, [f"a_{n}" for n in range(9)], "0.2 of 19 train frames, but 9 are held out"),
    ],
)
def test_holdout_of_few_groups_is_said(root, out, warnings, lengths, held_out, said):
    write_drives(root, lengths, list="{split}.txt", images="images/*", labels="labels/*")
    files = sorted(path.stem for path in (root / "images").iterdir())
    (root / "train.txt").write_text("\n".join(name for name in files if name[0] != "v"))
    (root / "val.txt").write_text("\n".join(name for name in files if name[0] == "v"))
    index = prepare(root, out, holdout_fraction=0.2)
    assert [frame["name"] for frame in index["splits"]["holdout"]["frames"]] == held_out
    assert said in warnings()


def turned_by_hand(image: np.ndarray, orientation: int) -> np.ndarray:
    """The image that EXIF orientation 1 to 8 means, by the definition of rows and columns."""
    swapped = image.transpose(1, 0, 2) if orientation > 4 else image
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return swapped[rows, columns]


def write_turned(root: Path, orientation: int, label_size_px: tuple[int, int]) -> np.ndarray:
    """Write val frame v as a PNG of 6 x 10 pixels with an EXIF orientation; return its stored pixels."""
    write_frames(root, ("a", "b"), ("v",), label_size_px)
    image, exif = pixels(7)[0], Image.Exif()
    exif[0x0112] = orientation
    write_image(root / "images" / "val" / "v.png", image, exif=exif)
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_images_on_request(root, out, orientation):
    describe(root, exif_orientation="apply")
    image = write_turned(root, orientation, (10, 6) if orientation > 4 else (6, 10))
    prepare(root, out)
    np.testing.assert_array_equal(open_split("val", out).images[0], turned_by_hand(image, orientation))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_on_request(root, out, orientation):
    describe(root, exif_orientation="ignore")
    image = write_turned(root, orientation, (6, 10))
    prepare(root, out)
    np.testing.assert_array_equal(open_split("val", out).images[0], image)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("label_is_turned", [True, False])
def test_size_of_the_label_decides_on_exif_orientation(root, out, orientation, label_is_turned):
    image = write_turned(root, orientation, (10, 6) if label_is_turned else (6, 10))
    prepare(root, out)
    expected = turned_by_hand(image, orientation) if label_is_turned else image
    np.testing.assert_array_equal(open_split("val", out).images[0], expected)


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_exif_orientation_that_no_size_decides_is_refused(root, orientation):
    write_turned(root, orientation, (6, 10))
    assert (
        f"images/val/v.png: EXIF orientation {orientation}, and its label may be drawn on the stored or the turned "
        "pixels; write exif_orientation: apply (turn the images) or ignore into classes.yaml"
    ) in errors_of(root)


BROKEN_EXIF = {  # TIFF entries behind the orientation, and whether the orientation can be read
    "rational that divides by 0": (struct.pack("<HHII", 0x11A, 10, 1, 38), struct.pack("<ii", -1, 0), True),
    "offset beyond the data": (struct.pack("<HHII", 0x9286, 7, 5000, 0x7FFFFFFF), b"", True),
    "cut short": (None, b"", False),
}


@pytest.mark.parametrize("case", BROKEN_EXIF)
def test_broken_exif_data_are_no_obstacle(root, out, case):
    entry, data, is_readable = BROKEN_EXIF[case]
    write_frames(root, ("a", "b"), ("v",), (10, 6) if is_readable else (6, 10))
    orientation = struct.pack("<HHII", 0x112, 3, 1, 6)
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + (entry or b"") + b"\0\0\0\0" + data
    content = b"Exif\0\0" + (tiff if entry else tiff[:14])
    stream = io.BytesIO()
    Image.fromarray(pixels(7)[0]).save(stream, "JPEG")
    jpeg = stream.getvalue()
    (root / "images" / "val" / "v.png").unlink()
    segment = b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content
    (root / "images" / "val" / "v.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    prepare(root, out)
    stored = np.asarray(Image.open(io.BytesIO(jpeg)))
    expected = turned_by_hand(stored, 6) if is_readable else stored
    np.testing.assert_array_equal(open_split("val", out).images[0], expected)


def test_linked_folder_is_refused_and_linked_files_are_read(root, tmp_path, out):
    write_frames(root, ("a", "b"), ("v",))
    real = tmp_path / "elsewhere"
    (root / "images" / "train").rename(real)
    (root / "images" / "train").symlink_to(real)
    found = errors_of(root)
    assert found.count("a link to a folder, in which DVC sees no changes; set data.root to a folder without such") == 1
    assert "images/train: a link to a folder" in found
    command = found.split("instead: ")[1].replace(" images", f" {root}/images")
    subprocess.run(command, shell=True, check=True)
    assert [path.is_symlink() for path in sorted((root / "images" / "train").iterdir())] == [True, True]
    prepare(root, out)
    (tmp_path / "link").symlink_to(root)  # DVC does look into a folder that is itself a link
    assert prepare(tmp_path / "link", tmp_path / "out")["fingerprint"] == read_json(out / "index.json")["fingerprint"]


def test_unread_suffixes_are_one_line_each(root):
    write_frames(root, ("a", "b"), ("v",))
    for name in ("c", "d"):
        write_image(root / "images" / "train" / f"{name}.bmp", pixels(1)[0])
        write_image(root / "labels" / "train" / f"{name}.jpg", pixels(1)[0])
    found = errors_of(root)
    assert (
        "images/train/c.bmp: one of 2 files that end in .bmp; images are read from files that end in .jpg or" in found
    )
    assert "labels/train/c.jpg: one of 2 files that end in .jpg; labels are read from files that end in .png" in found
    assert "(2):" in found


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


def test_all_errors_of_frames_are_named_together(root):
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
    found = errors_of(root)
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
    assert "images/train/a.png: is of the same frame as" in errors_of(root)
    (root / "images" / "train" / "a.jpg").unlink()
    describe(root, images="images/{split}/*/*.png", labels="labels/{split}/*/*.png")
    for name in ("x_y/z", "x/y_z"):
        write_image(root / "images" / "train" / f"{name}.png", pixels(0)[0])
        write_image(root / "labels" / "train" / f"{name}.png", pixels(0)[1])
    assert "gives the name 'x_y_z' that" in errors_of(root)


def test_name_that_is_no_utf8_is_refused(root):
    write_frames(root, ("a", "b"), ("v",))
    path = root / "images" / "train" / os.fsdecode(b"\xff.png")
    try:
        write_image(path, pixels(0)[0])
    except OSError:
        pytest.skip("this file system takes no such name")
    assert r"the name 'images/train/\udcff.png' is not UTF-8" in errors_of(root)


def test_missing_files_are_named(root):
    assert "no file there is named like images: images/train/*" in errors_of(root)
    (root / "classes.yaml").unlink()
    with pytest.raises(UserError, match=r"birds/classes\.yaml: no such file; it names the classes: docs/own-data\.md"):
        open_folder(str(root))
    for given, said in ((None, "'' is not set"), (root / "classes.yaml", "does not exist")):
        with pytest.raises(UserError, match=rf"data\.root: .*{said}; allowed: a folder with classes\.yaml"):
            open_folder(given and str(given))
