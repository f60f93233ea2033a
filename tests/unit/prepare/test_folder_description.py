"""classes.yaml: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from segdistill.core.errors import UserError
from segdistill.prepare.folder import open_folder, read_description
from support.folder_on_disk import DESCRIPTION, describe, write_image

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a description of the default layout."""
    describe(tmp_path / "birds")
    return tmp_path / "birds"


GRASS, OWL = DESCRIPTION["classes"][:2]


BAD_DESCRIPTIONS = {
    "unknown key": ({"label": 1}, ["label: unknown key; allowed: classes, labels_are"]),
    "unknown coding": ({"labels_are": "names"}, ["labels_are: found 'names'; allowed: ids or colors"]),
    "others": ({"other": "void"}, ["other: found 'void'; allowed: error or ignore"]),
    "exif": ({"exif_orientation": "turn"}, ["exif_orientation: found 'turn'; allowed: apply or ignore"]),
    "images of another kind": (
        {"images": "images/{split}/*.bmp", "labels": "labels/{split}/*.png"},
        ["images: found 'images/{split}/*.bmp'; images are read from files that end in .jpg or .jpeg or .png"],
    ),
    "labels of another kind": (
        {"labels": "labels/{split}/*.jpg"},
        ["labels: found 'labels/{split}/*.jpg'; labels are read from files that end in .png"],
    ),
    "no classes": ({"classes": None}, ["classes: found None; allowed is a list of 2 to 255"]),
    "one class": ({"classes": [GRASS]}, ["classes: found 1 classes; allowed is a list of 2 to 255"]),
    "too many classes": (
        {"classes": [{"name": f"c{n}", "ids": [n], "color": [n, n, n]} for n in range(256)], "ignore": []},
        ["classes: found 256 classes; allowed is a list of 2 to 255"],
    ),
    "no mapping": ({"classes": [GRASS, "owl"]}, ["classes.1: found 'owl'; allowed is a mapping of name, color, ids"]),
    "unknown key of a class": (
        {"classes": [GRASS, OWL | {"id": 3}]},
        ["classes.1.id: unknown key; allowed: name, color, ids"],
    ),
    "missing keys": ({"classes": [GRASS, {"name": "owl"}]}, ["classes.1.color: missing", "classes.1.ids: missing"]),
    "bad values": (
        {"classes": [GRASS, {"name": "a/b", "ids": [256], "color": [0, 0]}], "ignore": [-1]},
        [
            "classes.1.name: found 'a/b'; allowed are up to 64 letters",
            "classes.1.ids: found [256]; allowed is a list of ids from 0 to 255",
            "classes.1.color: found [0, 0]; allowed is [red, green, blue]",
            "ignore: found [-1]; allowed is a list of ids",
        ],
    ),
    "no ids": ({"classes": [GRASS, OWL | {"ids": []}]}, ["classes.1.ids: found []; allowed is a list of ids"]),
    "twice": (
        {"classes": [GRASS, OWL | {"ids": [2, 1, 2]}, GRASS | {"name": "barn_owl", "ids": [0]}]},
        [
            "classes.1: 1 is in classes.0 already",
            "classes.1: 2 is in classes.1 already",
            "ignore: 0 is in classes.2 already",
            "classes.2.name: 'barn_owl' is in classes.1.name already",
            "classes.2.color: [0, 160, 0] is in classes.0.color already",
        ],
    ),
    "ids for colors": (
        {"labels_are": "colors", "ignore": []},
        [f"classes.{number}.ids: unknown key; allowed: name, color, colors" for number in range(3)],
    ),
    "pattern outside": ({"images": "../{split}/*.jpg"}, ["images: found '../{split}/*.jpg'; allowed is a path below"]),
    "absolute pattern": ({"labels": "/data/{split}/*.png"}, ["labels: found '/data/{split}/*.png'"]),
    "pattern of no file": ({"images": "images/{split}/"}, ["with one star in the name of the file"]),
    "any depth": ({"images": "{split}/**/*.png"}, ["without .. and **"]),
    "other stars": ({"labels": "labels/{split}/*/*"}, ["it needs as many stars as images"]),
    "no split": ({"images": "images/*"}, ["'images/*'; {split} is needed in it without a list and a val_fraction"]),
    "split twice": (
        {"images": "images/{split}/*", "val_fraction": 0.1},
        ["images: found 'images/{split}/*'; {split} is not allowed in it with a list or a val_fraction"],
    ),
    "list and fraction": ({"list": "{split}.txt", "val_fraction": 0.1}, ["val_fraction: found with list; allowed"]),
    "list without split": ({"list": "all.txt"}, ["list: found 'all.txt'; allowed is a path below the folder with"]),
    "whole val": ({"val_fraction": 1.0}, ["val_fraction: found 1.0; allowed is a number between 0 and 1"]),
    "splits": ({"splits": {"train": "a/b"}}, ["splits: found {'train': 'a/b'}; allowed are names of folders"]),
    "group": ({"group": "("}, ["group: found '('; no regular expression"]),
}


@pytest.mark.parametrize("case", BAD_DESCRIPTIONS)
def test_description_that_is_not_allowed(root, case):
    changed, said = BAD_DESCRIPTIONS[case]
    describe(root, **changed)
    with pytest.raises(UserError) as refused:
        open_folder(str(root))
    message = str(refused.value)
    assert f"{root}/classes.yaml has values that are not allowed ({len(said)}):" in message
    for error in said:
        assert error in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("classes: [", "not YAML: .*line 1"),
        ("classes: []\nother: error\nother: ignore\n", r"(?s).*line 3: key other occurs twice"),
        ("classes: []\nother: no\n", r"(?s).*line 2: no is ambiguous in YAML; write it in quotes if it is text"),
        ("- 1\n", "found list, allowed is a mapping of classes, labels_are"),
        ("\xff", r"classes\.yaml: not UTF-8"),
    ],
)
def test_description_that_is_no_yaml(root, text, said):
    (root / "classes.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=said):
        open_folder(str(root))


def test_descriptions_of_the_docs_are_read(root):
    page = (DOCS / "own-data.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block.split("```")[0]) for block in page.split("```yaml\n")[1:]]
    street, pascal = (block for block in blocks if "ignore" in block)
    (root / "classes.yaml").write_text(yaml.safe_dump(street), encoding="utf-8")
    description = read_description(root / "classes.yaml")
    assert description.table.names == ("road", "car", "person", "building", "nature")
    assert description.table.label_ids == (3, 8, 9, 1, 0)
    assert description.coding.classes(np.array([[3, 4, 8, 11]], np.uint8)).tolist() == [[0, 0, 1, 255]]
    (root / "classes.yaml").write_text(yaml.safe_dump(pascal | {"classes": street["classes"]}), encoding="utf-8")
    assert read_description(root / "classes.yaml").layout.list == "ImageSets/Segmentation/{split}.txt"


def test_description_of_camvid_is_read(tmp_path):
    text = (DOCS / "classes-camvid.yaml").read_text(encoding="utf-8")
    (tmp_path / "classes.yaml").write_text(text, encoding="utf-8")
    assert len(yaml.safe_load(text)["classes"]) == 11
    colors = np.array([[[128, 64, 128], [0, 0, 192], [64, 192, 128], [0, 0, 0]]] * 3, np.uint8)
    for name in ("0001TP_006690", "0006R0_f00930", "0006R0_f00960"):
        write_image(tmp_path / "701_StillsRaw_full" / f"{name}.png", colors)
        write_image(tmp_path / "LabeledApproved_full" / f"{name}_L.png", colors)
    source = open_folder(str(tmp_path))
    (frame, *_), errors = source.list_frames("train")
    assert errors == []
    assert frame.city in ("0001TP", "0006R0")
    names = [*source.table.names, *[None] * 245]
    assert [names[number] for number in source.read(frame).classes[0]] == ["road", "pavement", "pavement", None]
