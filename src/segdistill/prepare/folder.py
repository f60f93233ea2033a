"""A folder of images and label images of one's own, described by the `classes.yaml` in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from segdistill.core.errors import UserError, raise_all
from segdistill.core.yaml_file import read_mapping
from segdistill.formats.classes import MAX_CLASSES, ClassTable, Color
from segdistill.prepare.file_tree import FolderTree
from segdistill.prepare.folder_files import Layout, Pair, layout_faults, list_pairs
from segdistill.prepare.images import decoded_label_colors, decoded_label_ids, decoded_picture, picture_size_px
from segdistill.prepare.label_coding import ColorCoding, IdCoding
from segdistill.prepare.sources import Frame, FrameData, Part, names_by_group, naming, read_parts, what_is_in


def open_folder(root: str | None) -> FolderFrames:
    """The data set in the folder `root`.

    Raises:
        UserError: there is no such folder, or its `classes.yaml` is missing or has values that are not allowed.
    """
    folder = Path(root or "").expanduser()
    if not root or not folder.is_dir():
        found = what_is_in(folder) if root else "is not set"
        raise UserError(f"data.root: '{root or ''}' {found}; allowed: a folder with {FILE_NAME}, images and labels")
    description = read_description(folder / FILE_NAME)
    layout = description.layout
    pairs, faults = list_pairs(folder, layout, "train")
    if layout.val_fraction is None:
        val, more = list_pairs(folder, layout, "val")
        faults += [fault for fault in more if fault not in faults]  # without {split} both look at the same files
        both = sorted({pair.name for pair in pairs} & {pair.name for pair in val})
        faults += [f"{folder}: frame '{name}' is in both splits, train and val" for name in both]
        train = pairs
    else:
        # Drawn by the names alone, so that results of other seeds are scored on the same frames.
        chosen = names_by_group(_frames("train", pairs), layout.val_fraction, "val")
        train = [pair for pair in pairs if pair.name not in chosen]
        val = [pair for pair in pairs if pair.name in chosen]
    return FolderFrames(FolderTree(folder), description, {"train": train, "val": val}, {"train": faults, "val": []})


def _frames(split: str, pairs: list[Pair]) -> list[Frame]:
    return [Frame(split, pair.group, "", pair.name, index) for index, pair in enumerate(pairs)]


@dataclass(frozen=True)
class FolderFrames:
    """Images as JPEG or PNG, labels as PNG of ids or colours."""

    tree: FolderTree
    description: Description
    pairs: dict[str, list[Pair]]
    listing_faults: dict[str, list[str]]

    @property
    def table(self) -> ClassTable:
        return self.description.table

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        return _frames(split, self.pairs[split]), list(self.listing_faults[split])

    def path_of(self, frame: Frame) -> str:
        return self.tree.path_of(self._pair(frame).image)

    def size_px(self, frame: Frame) -> tuple[int, int]:
        with naming(self.path_of(frame)):
            return picture_size_px(self.tree.read(self._pair(frame).image))

    def read(self, frame: Frame) -> FrameData:
        _, _, image, label = self._pair(frame)
        return read_parts(
            Part(self.tree.path_of(image), partial(self.tree.read, image), decoded_picture),
            Part(self.tree.path_of(label), partial(self.tree.read, label), self._decoded_classes),
            coding=self.description.digest,
        )

    def _pair(self, frame: Frame) -> Pair:
        return self.pairs[frame.split][frame.index]

    def _decoded_classes(self, content: bytes) -> np.ndarray:
        decode = decoded_label_ids if self.description.labels_are == "ids" else decoded_label_colors
        return self.description.coding.classes(decode(content))


FILE_NAME = "classes.yaml"
KEYS = ("classes", "labels_are", "ignore", "other", "images", "labels", "splits", "list", "val_fraction", "group")
CLASS_KEYS = {"ids": ("name", "color", "ids"), "colors": ("name", "color", "colors")}
# What a metric, a column and a heading can be named after.
_CLASS_NAME = re.compile(r"\w[\w -]{0,63}")


@dataclass(frozen=True)
class Description:
    """What `classes.yaml` says: the classes, how pixels of labels stand for them, and where the files lie."""

    table: ClassTable
    labels_are: str  # "ids" or "colors"
    coding: IdCoding | ColorCoding
    layout: Layout
    digest: str  # of all that decides which class a pixel of a label is


def read_description(path: Path) -> Description:
    """Read and check `path`.

    Raises:
        UserError: it is missing or not YAML, or any value is not allowed; all faults in one message.
    """
    raw = read_mapping(path, ", ".join(KEYS[:4]) + " ...", "it names the classes: docs/own-data.md")
    faults = [f"{key}: unknown key; allowed: {', '.join(KEYS)}" for key in raw if key not in KEYS]
    labels_are = raw.get("labels_are", "ids")
    for key, default, allowed in (("labels_are", "ids", ("ids", "colors")), ("other", "fault", ("fault", "ignore"))):
        if raw.get(key, default) not in allowed:
            faults.append(f"{key}: found {raw[key]!r}; allowed: {' or '.join(allowed)}")
    faults += layout_faults(raw)
    values: list[list] = []
    if labels_are in CLASS_KEYS:
        values = _read_classes(raw, labels_are, faults)
    raise_all(faults, f"{path} has values that are not allowed")
    classes, ignored = raw["classes"], _values(raw.get("ignore", []), labels_are)
    number_of = {value: number for number, mine in enumerate(values) for value in mine}
    coding = IdCoding if labels_are == "ids" else ColorCoding
    table = ClassTable(
        tuple(entry["name"] for entry in classes),
        tuple(mine[0] if labels_are == "ids" else number for number, mine in enumerate(values)),
        tuple(_color(entry["color"]) for entry in classes),
    )
    ignore_others = raw.get("other") == "ignore"
    digest = f"{labels_are} {sorted(number_of.items())} {sorted(ignored)} {ignore_others}"
    return Description(table, labels_are, coding(number_of, ignored, ignore_others), Layout.of(raw), digest)


def _read_classes(raw: dict, labels_are: str, faults: list[str]) -> list[list]:
    """What stands for each class in the labels; adds what is wrong with `classes` and `ignore` to `faults`."""
    classes = raw.get("classes")
    if not isinstance(classes, list) or not 2 <= len(classes) <= MAX_CLASSES:
        found = f"{len(classes)} classes" if isinstance(classes, list) else repr(classes)
        faults.append(f"classes: found {found}; allowed is a list of 2 to {MAX_CLASSES}")
        return []
    values = [_read_class(f"classes.{number}", entry, labels_are, faults) for number, entry in enumerate(classes)]
    ignored = _values(raw.get("ignore", []), labels_are)
    if ignored is None:
        faults.append(f"ignore: found {raw['ignore']!r}; allowed is {_ALLOWED[labels_are]}")
    owned = [(f"classes.{number}", value) for number, mine in enumerate(values) for value in mine]
    owned += [("ignore", value) for value in ignored or []]
    faults += _said_twice(owned)
    entries = [(f"classes.{number}", entry) for number, entry in enumerate(classes) if isinstance(entry, dict)]
    # As a key of the metrics a name has underscores for its spaces.
    faults += _said_twice(
        [(f"{path}.name", str(entry["name"]).replace(" ", "_")) for path, entry in entries if "name" in entry]
    )
    faults += _said_twice([(f"{path}.color", _color(entry.get("color"))) for path, entry in entries])
    return values


def _said_twice(owned: list[tuple[str, object]]) -> Iterator[str]:
    """A fault for each value that more than one path has."""
    first: dict[object, str] = {}
    for path, value in owned:
        if value in first and value is not None:
            shown = list(value) if isinstance(value, tuple) else repr(value)
            yield f"{path}: {shown} stands in {first[value]} already"
        first.setdefault(value, path)


_ALLOWED = {
    "ids": "a list of ids from 0 to 255, each once",
    "colors": "a list of colors [red, green, blue], each from 0 to 255",
}


def _read_class(path: str, entry: object, labels_are: str, faults: list[str]) -> list:
    """What stands for one class in the labels, empty where that is a fault."""
    keys = CLASS_KEYS[labels_are]
    if not isinstance(entry, dict):
        faults.append(f"{path}: found {entry!r}; allowed is a mapping of {', '.join(keys)}")
        return []
    faults += [f"{path}.{key}: unknown key; allowed: {', '.join(keys)}" for key in entry if key not in keys]
    needed = keys if labels_are == "ids" else keys[:2]  # a class drawn in its own colour need not repeat it
    faults += [f"{path}.{key}: missing" for key in needed if key not in entry]
    name, color = entry.get("name"), entry.get("color")
    if "name" in entry and not (isinstance(name, str) and _CLASS_NAME.fullmatch(name)):
        faults.append(f"{path}.name: found {name!r}; allowed are up to 64 letters, digits, spaces, '_' and '-'")
    if "color" in entry and _color(color) is None:
        faults.append(f"{path}.color: found {color!r}; allowed is [red, green, blue], each from 0 to 255, or '#rrggbb'")
    key = keys[2]
    if key not in entry:
        return [] if labels_are == "ids" or _color(color) is None else [_color(color)]
    values = _values(entry[key], labels_are)
    if not values:
        faults.append(f"{path}.{key}: found {entry[key]!r}; allowed is {_ALLOWED[labels_are]}")
    return values or []


def _values(found: object, labels_are: str) -> list | None:
    """A list of ids or of colours; None where `found` is none. A single id may stand without its list."""
    if labels_are == "ids":
        found = [found] if isinstance(found, int) else found
        return found if isinstance(found, list) and all(map(_is_byte, found)) else None
    colors = [_color(value) for value in found] if isinstance(found, list) else [None]
    return None if None in colors else colors


def _color(found: object) -> Color | None:
    """A colour given as [red, green, blue] or as "#rrggbb"; None where `found` is none."""
    if isinstance(found, str) and re.fullmatch("#[0-9a-fA-F]{6}", found):
        return tuple(bytes.fromhex(found[1:]))
    if not isinstance(found, list) or len(found) != 3 or not all(map(_is_byte, found)):
        return None
    return tuple(found)


def _is_byte(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= 255
