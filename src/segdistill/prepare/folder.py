"""A folder of your own images and label images, described by the `classes.yaml` in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from segdistill.core.errors import UserError, printable, raise_all
from segdistill.core.yaml_file import read_mapping
from segdistill.formats.classes import MAX_CLASSES, ClassTable, Color
from segdistill.prepare.file_tree import read_file
from segdistill.prepare.folder_files import Layout, Pair, layout_errors, list_pairs
from segdistill.prepare.images import decode_image, decode_label_colors, decode_label_ids, image_size_px, png_size_px
from segdistill.prepare.label_coding import ColorCoding, IdCoding
from segdistill.prepare.sources import (
    Frame,
    FrameData,
    FrameError,
    Part,
    describe_folder,
    draw_groups,
    name_path,
    read_pair,
)


def open_folder(root: str | None) -> FolderFrames:
    """Return the data set in the folder `root`.

    Raises:
        UserError: there is no such folder, or its `classes.yaml` is missing or has values that are not allowed.
    """
    folder = Path(root or "").expanduser()
    if not root or not folder.is_dir():
        found = describe_folder(folder) if root else "is not set"
        raise UserError(f"data.root: '{root or ''}' {found}; allowed: a folder with {FILE_NAME}, images and labels")
    description = read_description(folder / FILE_NAME)
    layout = description.layout
    pairs, errors = list_pairs(folder, layout, "train")
    if layout.val_fraction is None:
        val, more = list_pairs(folder, layout, "val")
        errors += [error for error in more if error not in errors]  # without {split} both list the same files
        both = sorted({pair.name for pair in pairs} & {pair.name for pair in val})
        errors += [f"{folder}: frame '{name}' is in both splits, train and val" for name in both]
        train = pairs
    else:
        # Drawn by the names alone, so that students of all seeds are scored on the same frames.
        chosen = draw_groups(_frames("train", pairs), layout.val_fraction, "val")
        train = [pair for pair in pairs if pair.name not in chosen]
        val = [pair for pair in pairs if pair.name in chosen]
        if train and not val:
            errors.append(
                f"{folder / FILE_NAME}: val_fraction: all {len(train)} frames are of one group, '{train[0].group}', "
                "and groups are taken whole; list the frames of val, or set group to what tells recordings apart"
            )
    return FolderFrames(folder, description, {"train": train, "val": val}, {"train": errors, "val": []})


def _frames(split: str, pairs: list[Pair]) -> list[Frame]:
    return [Frame(split, pair.group, "", pair.name, index) for index, pair in enumerate(pairs)]


@dataclass(frozen=True)
class FolderFrames:
    """Images as JPEG or PNG, labels as PNG of ids or colours."""

    folder: Path
    description: Description
    pairs: dict[str, list[Pair]]
    listing_errors: dict[str, list[str]]
    independent_frames: ClassVar[bool] = False

    @property
    def table(self) -> ClassTable:
        return self.description.table

    def list_frames(self, split: str) -> tuple[list[Frame], list[str]]:
        return _frames(split, self.pairs[split]), list(self.listing_errors[split])

    def path_of(self, frame: Frame) -> str:
        return self._parts(frame)[0].path

    def size_px(self, frame: Frame) -> tuple[int, int]:
        image, label = self._parts(frame)
        with name_path(image.path):
            stored_px = image_size_px(image.read())
        with name_path(label.path):
            label_px = png_size_px(label.read())
        if label_px not in (stored_px, stored_px[::-1]):  # EXIF data may turn the image
            raise FrameError([f"{label.path}: size {list(label_px)}, but its image has {list(stored_px)}"])
        return label_px

    def read(self, frame: Frame) -> FrameData:
        decode = decode_label_ids if self.description.labels_are == "ids" else decode_label_colors
        return read_pair(
            *self._parts(frame),
            partial(decode_image, exif=self.description.exif_orientation),
            lambda content: self.description.coding.classes(decode(content)),
            coding=self.description.digest,
        )

    def suspicions(self, pixels_C: np.ndarray) -> Iterator[str]:
        return iter(())

    def _parts(self, frame: Frame) -> tuple[Part, Part]:
        _, _, *files = self.pairs[frame.split][frame.index]
        image, label = (self.folder / file for file in files)
        return Part(printable(str(image)), partial(read_file, image)), Part(
            printable(str(label)), partial(read_file, label)
        )


FILE_NAME = "classes.yaml"
KEYS = (
    *("classes", "labels_are", "ignore", "other", "exif_orientation"),
    *("images", "labels", "splits", "list", "val_fraction", "group"),
)
CHOICES = {"labels_are": ("ids", "colors"), "other": ("error", "ignore"), "exif_orientation": ("apply", "ignore")}
CLASS_KEYS = {"ids": ("name", "color", "ids"), "colors": ("name", "color", "colors")}
# Metrics, columns and headings are named after classes.
_CLASS_NAME = re.compile(r"\w[\w -]{0,63}")


@dataclass(frozen=True)
class Description:
    """What `classes.yaml` says: the classes, their pixels in labels, and where the files are."""

    table: ClassTable
    labels_are: str  # "ids" or "colors"
    coding: IdCoding | ColorCoding
    layout: Layout
    exif_orientation: str | None  # "apply" or "ignore"; None where the sizes of labels decide
    digest: str  # of all that decides which class a pixel is


def read_description(path: Path) -> Description:
    """Return the checked content of `path`.

    Raises:
        UserError: it is missing or not YAML, or any value is not allowed; all errors in one message.
    """
    raw = read_mapping(path, ", ".join(KEYS[:4]) + " ...", "it names the classes: docs/own-data.md")
    errors = [f"{key}: unknown key; allowed: {', '.join(KEYS)}" for key in raw if key not in KEYS]
    labels_are = raw.get("labels_are", "ids")
    for key, allowed in CHOICES.items():
        if key in raw and raw[key] not in allowed:
            errors.append(f"{key}: found {raw[key]!r}; allowed: {' or '.join(allowed)}")
    errors += layout_errors(raw)
    values: list[list] = []
    if labels_are in ("ids", "colors"):
        values = _read_classes(raw, labels_are, errors)
    raise_all(errors, f"{path} has values that are not allowed")
    classes, ignored = raw["classes"], _values(raw.get("ignore", []), labels_are) or []
    number_of = {value: number for number, mine in enumerate(values) for value in mine}
    coding = IdCoding if labels_are == "ids" else ColorCoding
    table = ClassTable(
        tuple(entry["name"] for entry in classes),
        tuple(mine[0] if labels_are == "ids" else number for number, mine in enumerate(values)),
        tuple(color for entry in classes if (color := _color(entry["color"]))),
    )
    ignore_others = raw.get("other") == "ignore"
    exif = raw.get("exif_orientation")
    digest = f"{labels_are} {sorted(number_of.items())} {sorted(ignored)} {ignore_others}{f' {exif}' if exif else ''}"
    return Description(table, labels_are, coding(number_of, ignored, ignore_others), Layout.of(raw), exif, digest)


def _read_classes(raw: dict, labels_are: str, errors: list[str]) -> list[list]:
    """Return the pixel values of each class; add what is wrong with `classes` and `ignore` to `errors`."""
    classes = raw.get("classes")
    if not isinstance(classes, list) or not 2 <= len(classes) <= MAX_CLASSES:
        found = f"{len(classes)} classes" if isinstance(classes, list) else repr(classes)
        errors.append(f"classes: found {found}; allowed is a list of 2 to {MAX_CLASSES}")
        return []
    values = [_read_class(f"classes.{number}", entry, labels_are, errors) for number, entry in enumerate(classes)]
    ignored = _values(raw.get("ignore", []), labels_are)
    if ignored is None:
        errors.append(f"ignore: found {raw['ignore']!r}; allowed is {_ALLOWED[labels_are]}")
    owned = [(f"classes.{number}", value) for number, mine in enumerate(values) for value in mine]
    owned += [("ignore", value) for value in ignored or []]
    errors += _repeated(owned)
    entries = [(f"classes.{number}", entry) for number, entry in enumerate(classes) if isinstance(entry, dict)]
    # Keys of the metrics have underscores for spaces.
    errors += _repeated(
        [(f"{path}.name", str(entry["name"]).replace(" ", "_")) for path, entry in entries if "name" in entry]
    )
    errors += _repeated([(f"{path}.color", _color(entry.get("color"))) for path, entry in entries])
    return values


def _repeated(owned: list[tuple[str, object]]) -> Iterator[str]:
    """Yield an error for each value that occurs under more than one path."""
    first: dict[object, str] = {}
    for path, value in owned:
        if value in first and value is not None:
            shown = list(value) if isinstance(value, tuple) else repr(value)
            yield f"{path}: {shown} is in {first[value]} already"
        first.setdefault(value, path)


_ALLOWED = {
    "ids": "a list of ids from 0 to 255, each once",
    "colors": "a list of colors [red, green, blue], each from 0 to 255",
}


def _read_class(path: str, entry: object, labels_are: str, errors: list[str]) -> list:
    """Return the pixel values of one class, none where they are not allowed."""
    keys = CLASS_KEYS[labels_are]
    if not isinstance(entry, dict):
        errors.append(f"{path}: found {entry!r}; allowed is a mapping of {', '.join(keys)}")
        return []
    errors += [f"{path}.{key}: unknown key; allowed: {', '.join(keys)}" for key in entry if key not in keys]
    needed = keys if labels_are == "ids" else keys[:2]  # by default a class is drawn in its color
    errors += [f"{path}.{key}: missing" for key in needed if key not in entry]
    name, color = entry.get("name"), entry.get("color")
    if "name" in entry and not (isinstance(name, str) and _CLASS_NAME.fullmatch(name)):
        errors.append(f"{path}.name: found {name!r}; allowed are up to 64 letters, digits, spaces, '_' and '-'")
    if "color" in entry and _color(color) is None:
        errors.append(f"{path}.color: found {color!r}; allowed is [red, green, blue], each from 0 to 255, or '#rrggbb'")
    key = keys[2]
    if key not in entry:
        return [] if labels_are == "ids" or _color(color) is None else [_color(color)]
    values = _values(entry[key], labels_are)
    if not values:
        errors.append(f"{path}.{key}: found {entry[key]!r}; allowed is {_ALLOWED[labels_are]}")
    return values or []


def _values(found: object, labels_are: str) -> list | None:
    """Return a list of ids or of colours, None where `found` is neither. A single id needs no list."""
    if labels_are == "ids":
        found = [found] if isinstance(found, int) else found
        return found if isinstance(found, list) and all(map(_is_byte, found)) else None
    colors = [_color(value) for value in found] if isinstance(found, list) else [None]
    return None if None in colors else colors


def _color(found: object) -> Color | None:
    """Return the colour that [red, green, blue] or "#rrggbb" is, None for anything else."""
    if isinstance(found, str) and re.fullmatch("#[0-9a-fA-F]{6}", found):
        red, green, blue = bytes.fromhex(found[1:])
        return red, green, blue
    if not isinstance(found, list) or len(found) != 3 or not all(map(_is_byte, found)):
        return None
    red, green, blue = found
    return red, green, blue


def _is_byte(found: object) -> bool:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found <= 255
