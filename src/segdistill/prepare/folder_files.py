"""Which files of a folder are frames: patterns for images and labels, matched by what their stars stand for.

    images: images/{split}/*.jpg     labels: labels/{split}/*.png

A star stands for any text without a slash, `{split}` for the name of the split. What the stars of an image stand for,
joined by "_", is the name of the frame, and those of its label stand for the same. A pattern that ends in a star takes
any suffix of an image.
"""

from __future__ import annotations

import glob
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segdistill.prepare.images import SUFFIXES

SPLITS = ("train", "val")
_SPLIT = "{split}"


@dataclass(frozen=True)
class Layout:
    """Where files lie and how they are split; patterns are relative to the folder of the data set."""

    images: str
    labels: str
    split_names: dict[str, str]  # what `{split}` is for train and for val
    list: str | None  # of text files that name the frames of each split
    val_fraction: float | None  # of the frames, where nothing else splits them
    group: str | None  # regular expression of a frame's name: frames of one group are held out together

    @classmethod
    def of(cls, raw: dict) -> Layout:
        """The layout that `classes.yaml` gives, checked by `layout_faults`."""
        folder = "" if "list" in raw or "val_fraction" in raw else f"{_SPLIT}/"
        return cls(
            images=raw.get("images", f"images/{folder}*"),
            labels=raw.get("labels", f"labels/{folder}*"),
            split_names=raw.get("splits", {split: split for split in SPLITS}),
            list=raw.get("list"),
            val_fraction=raw.get("val_fraction"),
            group=raw.get("group"),
        )

    @property
    def by_pattern(self) -> bool:
        """Do the patterns tell the splits apart?"""
        return self.list is None and self.val_fraction is None


class Pair(NamedTuple):
    """A frame on disk: its name, the group it is held out with, and its files relative to the folder."""

    name: str
    group: str
    image: str
    label: str


def layout_faults(raw: dict) -> Iterator[str]:
    """What is wrong with the keys of `raw` that a Layout is made of."""
    layout = Layout.of(raw)
    for key in ("images", "labels", "list"):
        pattern = getattr(layout, key)
        if pattern is not None and (fault := _pattern_fault(key, pattern)):
            yield fault
            return
    if layout.images.count("*") != layout.labels.count("*"):
        yield f"labels: found {layout.labels!r}; it needs as many stars as images, {layout.images!r}"
    if layout.list is not None and layout.val_fraction is not None:
        yield "val_fraction: stands beside list; allowed is one of them"
    for key in ("images", "labels"):
        if (_SPLIT in getattr(layout, key)) != layout.by_pattern:
            said = "is needed" if layout.by_pattern else "cannot stand"
            yield f"{key}: found {getattr(layout, key)!r}; {_SPLIT} {said} in it {_BECAUSE[layout.by_pattern]}"
    names = layout.split_names
    if not isinstance(names, dict) or set(names) != set(SPLITS) or not all(map(_is_name, names.values())):
        yield f"splits: found {names!r}; allowed are names of folders for train and val"
    fraction = layout.val_fraction
    if fraction is not None and not (isinstance(fraction, float) and 0 < fraction < 1):
        yield f"val_fraction: found {fraction!r}; allowed is a number between 0 and 1"
    if layout.group is not None:
        try:
            re.compile(layout.group)
        except (re.error, TypeError) as error:
            yield f"group: found {layout.group!r}; no regular expression ({error})"


_BECAUSE = {True: "where there is no list and no val_fraction", False: "beside a list or a val_fraction"}


def _is_name(found: object) -> bool:
    return isinstance(found, str) and found not in ("", ".", "..") and "/" not in found


def _pattern_fault(key: str, pattern: object) -> str | None:
    said = f"{key}: found {pattern!r}; allowed is a path below the folder"
    if not isinstance(pattern, str) or not pattern or PurePosixPath(pattern).is_absolute():
        return said
    *folders, file = PurePosixPath(pattern).parts
    if ".." in folders or "**" in pattern:
        return f"{said}, without .. and **"
    if key == "list":
        return None if _SPLIT in pattern and "*" not in pattern else f"{said} with {_SPLIT} and without stars"
    return None if file.count("*") == 1 else f"{said} with one star in the name of the file"


def list_pairs(root: Path, layout: Layout, split: str) -> tuple[list[Pair], list[str]]:
    """The frames of `split` in order of their names, and all that is wrong with them; with `val_fraction`, all frames.

    Where a list says which frames count, the others need no label.
    """
    name, faults = layout.split_names[split], []
    images, labels = (
        _matching(root, pattern.replace(_SPLIT, name), suffixes, faults)
        for pattern, suffixes in ((layout.images, SUFFIXES), (layout.labels, SUFFIXES[-1:]))
    )
    wanted = images.keys() | labels
    if layout.list is not None:
        wanted = _listed(root, layout.list.replace(_SPLIT, name), images, faults)
    pairs = []
    for key in sorted(wanted):
        if key not in labels:
            faults.append(f"{root / images[key]}: image without a label")
        elif key not in images:
            faults.append(f"{root / labels[key]}: label without an image")
        elif (group := _group(key, layout)) is None:
            faults.append(f"{root / images[key]}: group {layout.group!r} does not match its name '{_name(key)}'")
        else:
            pairs.append(Pair(_name(key), group, images[key], labels[key]))
    if not pairs and not faults:
        faults.append(f"{root}: nothing there is named like images: {layout.images.replace(_SPLIT, name)}")
    pairs.sort()
    for pair, following in zip(pairs, pairs[1:], strict=False):
        if pair.name == following.name:  # as of a_b/c and a/b_c
            faults.append(f"{root / following.image}: gives the name '{pair.name}' that {root / pair.image} has")
    return pairs, faults


def _name(key: tuple[str, ...]) -> str:
    return "_".join(key)


def _group(key: tuple[str, ...], layout: Layout) -> str | None:
    if layout.group is None:
        return key[0]  # its folder where folders are told apart, and else a group of its own
    match = re.search(layout.group, _name(key))
    return match and match[min(1, match.re.groups)]


def _matching(root: Path, pattern: str, suffixes: tuple[str, ...], faults: list[str]) -> dict[tuple[str, ...], str]:
    """Files by what the stars of `pattern` stand for there; hidden files are passed over."""
    pieces = PurePosixPath(pattern).as_posix().split("*")
    stands_for = re.compile("([^/]+)".join(map(re.escape, pieces)))
    files: dict[tuple[str, ...], str] = {}
    for path in sorted(root.glob("*".join(map(glob.escape, pieces)))):
        file = path.relative_to(root).as_posix()
        if any(part.startswith(".") for part in PurePosixPath(file).parts) or not path.is_file():
            continue
        if not pieces[-1] and path.suffix.lower() not in suffixes:
            continue
        text = file if pieces[-1] else file.removesuffix(path.suffix)
        match = stands_for.fullmatch(text)
        if match is None:  # nothing where a star is
            continue
        # One letter may be written in two ways, and systems differ in how they name files.
        key = tuple(unicodedata.normalize("NFC", part) for part in match.groups())
        if not _is_text("".join(key)):
            faults.append(f"{root}: the name {ascii(file)} is not UTF-8")
        elif key in files:
            faults.append(f"{path}: is of the same frame as {root / files[key]}")
        else:
            files[key] = file
    return files


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listed(root: Path, file: str, images: dict[tuple[str, ...], str], faults: list[str]) -> set[tuple[str, ...]]:
    """The frames that the text `file` names, a line each, with or without suffix; unknown ones are faults."""
    try:
        lines = (root / file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{root / file}: {getattr(error, 'strerror', None) or error}; list: names it")
        return set()
    key_of = {_name(key): key for key in images}
    wanted = set()
    for number, line in enumerate(lines, 1):
        text = unicodedata.normalize("NFC", line.strip()).replace("/", "_")
        stem = text.removesuffix(Path(text).suffix) if Path(text).suffix.lower() in SUFFIXES else text
        if stem in key_of:
            wanted.add(key_of[stem])
        elif stem:
            faults.append(f"{root / file}:{number}: no image is named '{stem}'")
    return wanted
