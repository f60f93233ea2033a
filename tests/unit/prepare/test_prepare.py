"""prepare: what it stores, refuses and holds out, on tiny PNGs in the official layout."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.core.files import read_json
from segdistill.prepare import cityscapes
from segdistill.prepare import images as png_file
from segdistill.prepare.run import prepare as prepare_in_processes
from segdistill.prepare.sources import Frame, draw_frames, draw_groups
from support.city_on_disk import image_path, label_path, random_frame, write_city, write_frame, zip_city

TRAIN = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000313", "bochum_000000_000885")
VAL = ("ulm_000000_000019", "ulm_000001_000019")
SPLITS = ("train", "holdout", "val")


def settings(root: Path | str | None, **changed) -> SimpleNamespace:
    return SimpleNamespace(
        **{"source": "cityscapes", "root": str(root), "size_px": None, "holdout_fraction": 0.25, "unlabelled": None}
        | {"unseen_groups": (), "holdout_by": "groups"}
        | changed
    )


def prepare(data: SimpleNamespace, seed: int, out: Path, workers: int = 1) -> dict:
    return prepare_in_processes(data, seed, out, workers)  # starting processes takes longer than tiny frames do


def stored_bytes(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cityscapes"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "prepared"


def test_arrays_and_index_hold_every_frame(root, out):
    written = write_city(root, TRAIN, VAL)
    index = prepare(settings(root), 0, out)
    assert index == read_json(out / "index.json")
    assert index["size_px"] == [8, 16]
    assert index["classes"] == list(cityscapes.CLASS_NAMES)
    assert (index["label_ids"][0], index["colors"][0]) == (7, [128, 64, 128])  # road
    names = {split: [frame["name"] for frame in index["splits"][split]["frames"]] for split in SPLITS}
    assert sorted(names["train"] + names["holdout"]) == list(TRAIN)
    assert names["val"] == list(VAL)
    assert {name.split("_")[0] for name in names["holdout"]} in ({"aachen"}, {"bochum"})
    assert len(names["holdout"]) == 2
    for split in SPLITS:
        images, labels = np.load(out / split / "images-00000.npy"), np.load(out / split / "labels-00000.npy")
        assert images.dtype == labels.dtype == np.uint8
        folder = "val" if split == "val" else "train"
        for row, frame in enumerate(index["splits"][split]["frames"]):
            image, label_ids = written[frame["name"]]
            np.testing.assert_array_equal(images[row], image)
            np.testing.assert_array_equal(labels[row], cityscapes.TRAIN_ID_OF_LABEL_ID[label_ids])
            paths = image_path(root, folder, frame["name"]), label_path(root, folder, frame["name"])
            assert frame["checksum"] == hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
            assert frame["name"].startswith(f"{frame['city']}_{frame['sequence']}_")


@pytest.mark.parametrize("archived", ["both", "labels only"])
def test_zips_give_the_same_bytes_as_the_folder(root, out, tmp_path, archived):
    write_city(root, TRAIN, VAL)
    zip_city(root, tmp_path / "zips")
    if archived == "labels only":
        (tmp_path / "zips" / cityscapes.IMAGE_ZIP).unlink()
        shutil.copytree(root / "leftImg8bit", tmp_path / "zips" / "leftImg8bit")
    prepare(settings(root), 0, out)
    prepare(settings(tmp_path / "zips"), 0, tmp_path / "from_zips")
    assert stored_bytes(out) == stored_bytes(tmp_path / "from_zips")


def test_bytes_do_not_depend_on_workers(root, out, tmp_path):
    write_city(root, tuple(f"aachen_{sequence:06d}_000019" for sequence in range(11)), VAL)
    zip_city(root, tmp_path / "zips")
    prepare(settings(root), 0, out)
    prepare(settings(tmp_path / "zips"), 0, tmp_path / "by_two", workers=2)
    assert stored_bytes(out) == stored_bytes(tmp_path / "by_two")


def test_resizing_is_pillows(root, out):
    written = write_city(root, TRAIN, VAL, (32, 64))
    write_frame(root, "val", "ulm_000001_000019", *random_frame(7, (20, 20)))  # of another size, which is fine here
    index = prepare(settings(root, size_px=(10, 24)), 0, out)
    assert index["size_px"] == [10, 24]
    image, label_ids = written[VAL[0]]
    image = Image.fromarray(image).resize((24, 10), Image.Resampling.BILINEAR)
    label_ids = Image.fromarray(label_ids).resize((24, 10), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.load(out / "val" / "images-00000.npy")[0], np.asarray(image))
    train_ids = cityscapes.TRAIN_ID_OF_LABEL_ID[np.asarray(label_ids)]
    np.testing.assert_array_equal(np.load(out / "val" / "labels-00000.npy")[0], train_ids)


def test_class_frequencies_are_of_valid_pixels(root, out):
    write_city(root, TRAIN, VAL)
    road, car, unlabeled = 7, 26, 0
    for stem, row in zip(VAL, ([road, road, road, unlabeled], [car, unlabeled, unlabeled, unlabeled]), strict=True):
        write_frame(root, "val", stem, random_frame(0)[0], np.tile(np.array(row, np.uint8), (8, 4)))
    frequency = prepare(settings(root), 0, out)["splits"]["val"]["class_frequency"]
    assert frequency == [0.75 if name == "road" else 0.25 if name == "car" else 0.0 for name in cityscapes.CLASS_NAMES]


def test_palette_labels_linked_files_and_other_files_are_read(root, out, tmp_path):
    written = write_city(tmp_path / "elsewhere", TRAIN, VAL)
    subprocess.run(["cp", "-rs", str(tmp_path / "elsewhere"), str(root)], check=True)
    for top in ("leftImg8bit", "gtFine"):
        (root / top / "test" / "berlin").mkdir(parents=True)
        (root / top / "test" / "berlin" / "no_official_name.png").touch()
        (root / top / "val" / "ulm" / "._hidden.png").touch()
    label_path(root, "val", VAL[0]).with_name(f"{VAL[0]}_gtFine_color.png").touch()
    palette = Image.fromarray(written[VAL[0]][1])
    palette.putpalette([value for color in cityscapes.PALETTE.tolist() for value in color])
    label_path(root, "val", VAL[0]).unlink()
    palette.save(label_path(root, "val", VAL[0]))
    prepare(settings(root), 0, out)
    train_ids = cityscapes.TRAIN_ID_OF_LABEL_ID[written[VAL[0]][1]]
    np.testing.assert_array_equal(np.load(out / "val" / "labels-00000.npy")[0], train_ids)


@pytest.mark.parametrize("link", ["leftImg8bit", "gtFine/val", "gtFine/train/bochum"])
def test_linked_folder_is_refused(root, out, tmp_path, link):
    write_city(root, TRAIN, VAL)
    (root / link).rename(tmp_path / "elsewhere")
    (root / link).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError) as refused:
        prepare(settings(root), 0, out)
    assert f"{root / link}: a link to a folder, in which DVC sees no changes" in str(refused.value)
    assert f"rm {root / link} && cp -rs {tmp_path / 'elsewhere'} {root / link}" in str(refused.value)
    (tmp_path / "link").symlink_to(root)  # DVC does look into a folder that is itself a link
    (root / link).unlink()
    (tmp_path / "elsewhere").rename(root / link)
    prepare(settings(tmp_path / "link"), 0, out)


def rewritten(path: Path, rename=lambda name: name, flags: int = 0, method: int | None = None) -> None:
    """Write a zip again with other names of its members, and what their headers say changed."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist() if not name.endswith("/")]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            member = zipfile.ZipInfo("x")
            member.filename = rename(name)
            archive.writestr(member, content)
        for member in archive.infolist():  # the directory of members is written at the end
            member.flag_bits |= flags
            member.compress_type = member.compress_type if method is None else method


def test_zip_whose_members_start_with_a_dot_gives_the_same_bytes(root, out, tmp_path):
    write_city(root, TRAIN, VAL)
    zip_city(root, tmp_path / "zips")
    for name in (cityscapes.IMAGE_ZIP, cityscapes.LABEL_ZIP):
        rewritten(tmp_path / "zips" / name, lambda name: f"./{name}")
    prepare(settings(root), 0, out)
    prepare(settings(tmp_path / "zips"), 0, tmp_path / "from_zips")
    assert stored_bytes(out) == stored_bytes(tmp_path / "from_zips")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"flags": 1}, "has encrypted members; allowed are zips without a password"),
        ({"method": 9}, "compressed by Deflate64, which Python does not read; pack it again with Deflate"),
        ({"method": 98}, "compressed by method 98, which"),
    ],
)
def test_zip_that_cannot_be_unpacked_is_one_error(root, out, tmp_path, header, said):
    write_city(root, TRAIN, VAL)
    zip_city(root, tmp_path / "zips")
    rewritten(tmp_path / "zips" / cityscapes.IMAGE_ZIP, **header)
    with pytest.raises(UserError, match=rf"\(1\):\n  - .*{cityscapes.IMAGE_ZIP}: {said}"):
        prepare(settings(tmp_path / "zips"), 0, out)


PLACES = {
    "another folder on top": (lambda name: f"cityscapes/{name}", "cityscapes/leftImg8bit/train/aachen/aachen_000000"),
    "no folder on top": (lambda name: name.split("/", 1)[1], "train/aachen/aachen_000000"),
    "separators of Windows": (lambda name: name.replace("/", "\\"), "leftImg8bit\\train\\aachen"),
}


@pytest.mark.parametrize("case", PLACES)
def test_zip_with_files_elsewhere_says_what_was_found_where(root, out, tmp_path, case):
    rename, found = PLACES[case]
    write_city(root, TRAIN, VAL)
    zip_city(root, tmp_path / "zips")
    path = tmp_path / "zips" / cityscapes.IMAGE_ZIP
    rewritten(path, rename)
    with pytest.raises(UserError) as refused:
        prepare(settings(tmp_path / "zips"), 0, out)
    for split in ("train", "val"):
        where = f"{path}: leftImg8bit/{split}: no file there is named CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png, but"
        assert where in str(refused.value)
    assert found in str(refused.value)
    assert "without an image" not in str(refused.value)


def as_train_ids(root: Path, suffix: str, ignored: int = 255) -> None:
    """Turn the label ids under `root` into trainIds, in files that end in `suffix`."""
    for path in sorted(root.rglob("*_labelIds.png")):
        train_ids = cityscapes.TRAIN_ID_OF_LABEL_ID[np.asarray(Image.open(path))].copy()
        train_ids[train_ids == 255] = ignored
        path.unlink()
        Image.fromarray(train_ids).save(path.with_name(path.name.replace("labelIds", suffix)))


def test_train_ids_alone_are_one_line_for_each_split(root, out):
    write_city(root, TRAIN, VAL)
    as_train_ids(root, "labelTrainIds")
    with pytest.raises(UserError) as refused:
        prepare(settings(root), 0, out)
    message = str(refused.value)
    assert message.count("no file there is named CITY/CITY_SEQUENCE_FRAME_gtFine_labelIds.png, but") == 2
    assert f"but {root}/gtFine/train/aachen/" in message
    assert "_gtFine_labelTrainIds.png" in message
    assert "image without a label" not in message


def test_train_ids_under_the_name_of_label_ids_are_noticed(root, out, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr("segdistill.prepare.run.logger.warning", lambda text, *values: said.append(text % values))
    write_city(root, TRAIN, VAL)
    prepare(settings(root), 0, out)
    assert said == []
    as_train_ids(root, "labelIds", ignored=2)
    prepare(settings(root), 0, out)
    assert len(said) == 1
    assert "no label has an id above 18: these may be trainIds under the name _gtFine_labelIds.png" in said[0]
    write_city(root, TRAIN, VAL)
    as_train_ids(root, "labelIds")
    with pytest.raises(
        UserError, match="label ids 255 are not in the table; allowed: 0 to 33; these look like trainIds"
    ):
        prepare(settings(root), 0, out)


def test_fingerprint_changes_with_any_frame_and_with_the_split(root, out, tmp_path):
    write_city(root, TRAIN, VAL)
    fingerprints = [prepare(settings(root), 0, out)["fingerprint"]]
    assert prepare(settings(root), 0, out)["fingerprint"] == fingerprints[0]
    fingerprints.append(prepare(settings(root, size_px=(4, 8)), 0, out)["fingerprint"])
    fingerprints.append(prepare(settings(root), 3, out)["fingerprint"])
    write_frame(root, "train", "aachen_000002_000019", *random_frame(50))
    fingerprints.append(prepare(settings(root), 0, out)["fingerprint"])
    write_frame(root, "train", "aachen_000002_000019", *random_frame(51))
    fingerprints.append(prepare(settings(root), 0, out)["fingerprint"])
    assert len(set(fingerprints)) == len(fingerprints)


def test_all_errors_are_named_together_and_nothing_is_left(root, out):
    write_city(root, TRAIN, VAL)
    before = stored_bytes(prepare(settings(root), 0, out) and out)
    image, label_ids = random_frame(9)
    errors = {}

    def broken(sequence: int, said: str, write: bool = True) -> str:
        stem = f"jena_{sequence:06d}_000019"
        if write:
            write_frame(root, "train", stem, image, label_ids)
        errors[stem] = said
        return stem

    label_path(root, "train", broken(0, "image without a label")).unlink()
    image_path(root, "train", broken(1, "label without an image")).unlink()
    path = image_path(root, "train", broken(2, "truncated"))
    path.write_bytes(path.read_bytes()[:-200])
    image_path(root, "train", broken(3, "no readable PNG (5 bytes)")).write_bytes(b"hello")
    write_frame(root, "train", broken(4, "size [8, 15], but its image has [8, 16]"), image, label_ids[:, :15])
    write_frame(root, "train", broken(5, "size [6, 16], but the first frame has [8, 16]"), image[:6], label_ids[:6])
    write_frame(root, "train", broken(6, "label ids 34, 255 are not in the table"), image, label_ids + 1)
    odd = label_ids.copy()
    odd[0, :2] = 34, 255
    write_frame(root, "train", "jena_000006_000019", image, odd)
    for sequence, mode in enumerate(("L", "P", "RGBA"), 7):
        stem = broken(sequence, f"mode {mode}, 8 bit; a photograph has to be RGB, 8 bit")
        Image.fromarray(image).convert(mode).save(image_path(root, "train", stem))
    stem = broken(10, "mode I;16, 16 bit; labels have to be 8-bit")
    Image.fromarray(label_ids.astype(np.uint16)).save(label_path(root, "train", stem))
    stem = broken(11, "mode RGB, 8 bit; labels have to be 8-bit")
    Image.fromarray(image).save(label_path(root, "train", stem))
    image_path(root, "train", broken(12, "a PNG here is named")).rename(
        root / "leftImg8bit" / "train" / "jena" / "jena_000012_000019.png"
    )
    errors["JENA_1_1_leftImg8bit"] = "does not follow <city>_<sequence>_<frame>"
    Image.fromarray(image).save(root / "leftImg8bit" / "train" / "jena" / "JENA_1_1_leftImg8bit.png")
    errors["ulm_000009_000019_gtFine"] = "of another city, 'jena'"
    Image.fromarray(label_ids).save(root / "gtFine" / "train" / "jena" / "ulm_000009_000019_gtFine_labelIds.png")

    with pytest.raises(UserError) as error:
        prepare(settings(root), 0, out, workers=2)
    lines = str(error.value).splitlines()
    for stem, said in errors.items():
        assert any(str(root) in line and stem in line and said in line for line in lines), f"{stem}: {said}\n{lines}"
    assert len(lines) == len(errors) + 2, lines  # a heading, and the label whose image was misnamed
    assert stored_bytes(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_errors_of_zips_name_archive_and_member(root, out, tmp_path):
    write_city(root, TRAIN, VAL)
    image_path(root, "train", TRAIN[0]).write_bytes(b"hello")
    zip_city(root, tmp_path / "zips")
    path = tmp_path / "zips" / cityscapes.IMAGE_ZIP
    with pytest.raises(
        UserError, match=f"{path}: leftImg8bit/train/aachen/{TRAIN[0]}_leftImg8bit.png: no readable PNG"
    ):
        prepare(settings(tmp_path / "zips"), 0, out)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../outside.png", b"")
        archive.writestr("/tmp/outside.png", b"")
    (tmp_path / "zips" / cityscapes.LABEL_ZIP).write_bytes(b"no zip")
    with pytest.raises(UserError) as error:
        prepare(settings(tmp_path / "zips"), 0, out)
    for said in (f"{path}: ../outside.png", f"{path}: /tmp/outside.png", f"{cityscapes.LABEL_ZIP}: no readable zip"):
        assert said in str(error.value)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_absurd_sizes_are_refused(root, out, monkeypatch):
    write_city(root, TRAIN, VAL)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # frames have 128
    with pytest.raises(UserError, match=r"(?s)aachen.*exceeds limit of 100 pixels.*ulm"):
        prepare(settings(root), 0, out)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    monkeypatch.setattr(png_file, "MAX_FILE_BYTES", 50)
    with pytest.raises(UserError, match="larger than the 50 bytes"):
        prepare(settings(root), 0, out)


def test_missing_data_set_names_data_root(root, out):
    for given, said in ((root, "does not exist"), ("", "is not set")):
        with pytest.raises(UserError, match=rf"data\.root: .*{said}; allowed: .*gtFine_trainvaltest\.zip"):
            prepare(settings(given), 0, out)
    (root / "gtFine").mkdir(parents=True)
    (root / "notes.txt").touch()
    with pytest.raises(UserError, match=r"data\.root: .*holds gtFine/, notes\.txt; allowed"):
        prepare(settings(root), 0, out)
    with pytest.raises(UserError, match=r"data\.source: 'kitti'; allowed: synthetic, cityscapes, folder"):
        prepare(settings(root, source="kitti"), 0, out)


def test_empty_splits_and_a_single_train_frame(root, out):
    write_city(root, TRAIN[:1], ())
    with pytest.raises(UserError, match=r"(?s)the val split has no frames.*data\.holdout_fraction: 0\.25 of 1 train"):
        prepare(settings(root), 0, out)
    (root / "leftImg8bit" / "train").rename(root / "leftImg8bit" / "val")
    (root / "gtFine" / "train").rename(root / "gtFine" / "val")
    with pytest.raises(UserError, match="the train split has no frames"):
        prepare(settings(root), 0, out)


def test_unseen_groups_are_in_no_other_split(root, out, tmp_path):
    train = (*TRAIN, "bremen_000000_000019", "celle_000000_000019")
    written = write_city(root, train, (*VAL, "bremen_000009_000019"))
    index = prepare(settings(root, unseen_groups=("bremen",)), 0, out)
    names = {split: [frame["name"] for frame in facts["frames"]] for split, facts in index["splits"].items()}
    assert names["unseen"] == ["bremen_000000_000019", "bremen_000009_000019"]
    assert names["val"] == list(VAL)
    assert sorted(names["train"] + names["holdout"]) == sorted({*train} - {"bremen_000000_000019"})
    for row, name in enumerate(names["unseen"]):
        np.testing.assert_array_equal(np.load(out / "unseen" / "images-00000.npy")[row], written[name][0])
    # The holdout is drawn as if the groups were not there, and without such groups there is no such split.
    without = [city for city in train if not city.startswith("bremen")]
    write_city(tmp_path / "other", without, VAL)
    other = prepare(settings(tmp_path / "other"), 0, tmp_path / "out")
    assert [frame["name"] for frame in other["splits"]["holdout"]["frames"]] == names["holdout"]
    assert list(other["splits"]) == list(SPLITS)


def test_holdout_by_frames_leaves_every_group_to_train_on(root, out):
    train = [f"{city}_000000_{number:06d}" for city in ("bremen", "celle") for number in range(4)]
    write_city(root, train, VAL)
    splits = prepare(settings(root, holdout_by="frames"), 0, out)["splits"]
    held_out = [frame["name"] for frame in splits["holdout"]["frames"]]
    assert held_out in (train[2:4], train[6:])
    assert [frame["name"] for frame in splits["train"]["frames"]] == [name for name in train if name not in held_out]


def test_val_stays_where_all_its_groups_are_unseen(root, out):
    write_city(root, (*TRAIN, "ulm_000005_000019"), VAL)
    splits = prepare(settings(root, unseen_groups=("ulm",)), 0, out)["splits"]
    assert [frame["name"] for frame in splits["val"]["frames"]] == list(VAL)
    assert [frame["name"] for frame in splits["unseen"]["frames"]] == ["ulm_000005_000019"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (("Ulm", "aachen"), "data.unseen_groups: found Ulm; the groups of frames are aachen, bochum, ulm"),
        (("aachen", "bochum"), "data.unseen_groups: takes all 4 train frames; leave a group to train on"),
        (("ulm",), "data.unseen_groups: names all groups of val and none of train"),
    ],
)
def test_unseen_groups_that_leave_nothing_are_refused(root, out, groups, message):
    write_city(root, TRAIN, VAL)
    with pytest.raises(UserError) as refused:
        prepare(settings(root, unseen_groups=groups), 0, out)
    assert message in str(refused.value)


def test_split_without_any_class_is_refused(root, out):
    write_city(root, TRAIN, VAL)
    for stem in VAL:
        write_frame(root, "val", stem, random_frame(0)[0], np.zeros((8, 16), np.uint8))
    with pytest.raises(UserError, match="the val split: every pixel of its 2 frames is ignored"):
        prepare(settings(root), 0, out)


def train_frames(sequence_lengths: dict[tuple[str, str], int]) -> list[Frame]:
    stems = (f"{city}_{run}_{i:06d}" for (city, run), length in sequence_lengths.items() for i in range(length))
    return [Frame("train", *stem.split("_")[:2], stem, index) for index, stem in enumerate(sorted(stems))]


CITIES = {(city, f"{run:06d}"): 3 * run + 2 for city in ("aachen", "bochum", "jena") for run in range(5)}


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.33, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_holdout_of_independent_frames_is_exact_and_one_stretch(fraction, seed):
    frames = train_frames(CITIES)
    held_out = draw_frames(frames, fraction, seed)
    assert len(held_out) == min(max(round(fraction * len(frames)), 1), len(frames) - 1)
    assert held_out == draw_frames(frames[::-1], fraction, seed)
    partly = 0
    for group in CITIES:
        flags = [frame.name in held_out for frame in frames if (frame.city, frame.sequence) == group]
        assert flags == sorted(flags)  # what is held out of a sequence is its end
        partly += any(flags) and not all(flags)
    assert partly <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.33, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_holdout_takes_whole_groups(fraction, seed):
    frames = train_frames({(f"city{number}", "000000"): 3 + 5 * (number % 4) for number in range(12)})
    held_out = draw_groups(frames, fraction, seed)
    taken = {frame.city for frame in frames if frame.name in held_out}
    assert held_out == {frame.name for frame in frames if frame.city in taken}
    assert 0 < len(held_out) < len(frames)
    assert abs(len(held_out) - fraction * len(frames)) <= 18  # the largest group
    assert held_out == draw_groups(frames[::-1], fraction, seed)


def test_holdout_follows_the_seed_and_leaves_one_frame():
    frames = train_frames({(f"city{number}", "000000"): 1 for number in range(40)})
    for draw in (draw_frames, draw_groups):
        assert len({frozenset(draw(frames, 0.1, seed)) for seed in range(10)}) > 5
        assert draw(frames[:2], 1.0, 0) < {frame.name for frame in frames[:2]}
        assert draw(frames[:1], 0.5, 0) == draw([], 0.5, 0) == set()


def test_synthetic_city(out, tmp_path, monkeypatch):
    city = ModuleType("segdistill.prepare.synthetic.render")
    city.frame_name = lambda split, index: ("synthetic", f"synthetic_{index // 3:06d}_{index:06d}")
    city.render_frame = lambda seed, split, index, size_px: random_frame(seed + index + 100 * (split == "val"), size_px)
    monkeypatch.setitem(sys.modules, "segdistill.prepare.synthetic.render", city)
    monkeypatch.setattr("segdistill.prepare.synthetic.render", city, raising=False)
    counts = SimpleNamespace(train_frames=5, val_frames=2)
    index = prepare(settings("", source="synthetic", size_px=(16, 24), synthetic=counts), 3, out)
    image, label_ids = random_frame(3 + 101, (16, 24))
    np.testing.assert_array_equal(np.load(out / "val" / "images-00000.npy")[1], image)
    np.testing.assert_array_equal(
        np.load(out / "val" / "labels-00000.npy")[1], cityscapes.TRAIN_ID_OF_LABEL_ID[label_ids]
    )
    checksum = hashlib.sha256(image.tobytes() + label_ids.tobytes()).hexdigest()
    assert index["splits"]["val"]["frames"][1]["checksum"] == checksum
    with pytest.raises(UserError, match=r"data\.size_px"):
        prepare(settings("", source="synthetic", synthetic=counts), 3, out)


def test_import_loads_nothing_heavy():
    heavy = ("torch", "torchvision", "mlflow", "pydantic", "onnx", "rich", "dvc", "plotly")
    code = f"import segdistill.prepare.run, sys; print(*(name for name in {heavy} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []
