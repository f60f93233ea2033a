"""Which files of a folder are frames: patterns for images and labels, in which stars are any text.

    images: images/{split}/*.jpg     labels: labels/{split}/*.png

A star is any text without a slash, `{split}` the name of the split. The texts of the stars of an image, joined by "_",
are the name of the frame; its label has the same texts. A pattern that ends in a star takes any suffix of an image.
"""

from __future__ import annotations

import glob
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segdistill.prepare.file_tree import linked_folders
from segdistill.prepare.images import SUFFIXES

SPLITS = ("train", "val")
_SPLIT = "{split}"
# Suffixes of images that are not read: a folder with such files is refused, not read in part.
OTHER_SUFFIXES = (".bmp", ".gif", ".heic", ".jfif", ".jp2", ".pgm", ".ppm", ".tga", ".tif", ".tiff", ".webp")

Key = tuple[str, ...]  # of a frame: the texts of the stars


@dataclass(frozen=True)
class Layout:
    """Where the files are and how they are split; patterns are relative to the folder of the data set."""

    images: str
    labels: str
    split_names: dict[str, str]  # what `{split}` is for train and for val
    list: str | None  # of text files that name the frames of each split
    val_fraction: float | None  # of the frames, where nothing else splits them
    group: str | None  # regular expression on a frame's name: frames of one group are held out together

    @classmethod
    def of(cls, raw: dict) -> Layout:
        """Return the layout of `classes.yaml`, which `layout_errors` checks."""
        folder = "" if "list" in raw or "val_fraction" in raw else f"{_SPLIT}/"
        return cls(
            images=raw.get("images", f"images/{folder}*"),
            labels=raw.get("labels", f"labels/{folder}*"),
            split_names=raw.get("splits", {split: split for split in SPLITS}),
            list=raw.get("list"),
            val_fraction=raw.get("val_fraction"),
            group=raw.get("group"),
        )


class Pair(NamedTuple):
    """A frame on disk: its name, the group it is held out with, and its files relative to the folder."""

    name: str
    group: str
    image: str
    label: str


def layout_errors(raw: dict) -> Iterator[str]:
    """Yield what is wrong with the keys of `raw` that a Layout is made of."""
    layout = Layout.of(raw)
    for key in ("images", "labels", "list"):
        pattern = getattr(layout, key)
        if pattern is not None and (error := _pattern_error(key, pattern)):
            yield error
            return
    if layout.images.count("*") != layout.labels.count("*"):
        yield f"labels: found {layout.labels!r}; it needs as many stars as images, {layout.images!r}"
    if layout.list is not None and layout.val_fraction is not None:
        yield "val_fraction: found with list; allowed is one of them"
    by_pattern = layout.list is None and layout.val_fraction is None
    rule = f"{_SPLIT} is needed in it without a list and a val_fraction"
    rule = rule if by_pattern else f"{_SPLIT} is not allowed in it with a list or a val_fraction"
    for key in ("images", "labels"):
        if (_SPLIT in getattr(layout, key)) != by_pattern:
            yield f"{key}: found {getattr(layout, key)!r}; {rule}"
    names = layout.split_names
    is_pair = isinstance(names, dict) and set(names) == set(SPLITS)
    if not is_pair or not all(
        isinstance(name, str) and name not in ("", ".", "..") and "/" not in name for name in names.values()
    ):
        yield f"splits: found {names!r}; allowed are names of folders for train and val"
    fraction = layout.val_fraction
    if fraction is not None and not (isinstance(fraction, float) and 0 < fraction < 1):
        yield f"val_fraction: found {fraction!r}; allowed is a number between 0 and 1"
    if layout.group is not None:
        try:
            re.compile(layout.group)
        except (re.error, TypeError) as error:
            yield f"group: found {layout.group!r}; no regular expression ({error})"


def _pattern_error(key: str, pattern: object) -> str | None:
    allowed = f"{key}: found {pattern!r}; allowed is a path below the folder"
    if not isinstance(pattern, str) or not pattern or PurePosixPath(pattern).is_absolute():
        return allowed
    *folders, file = PurePosixPath(pattern).parts
    if ".." in folders or "**" in pattern:
        return f"{allowed}, without .. and **"
    if key == "list":
        return None if _SPLIT in pattern and "*" not in pattern else f"{allowed} with {_SPLIT} and without stars"
    if PurePosixPath(file).suffix.lower() in OTHER_SUFFIXES or (
        key == "labels" and file.lower().endswith(SUFFIXES[:2])
    ):
        return f"{key}: found {pattern!r}; {_are_read(key)}"
    return None if file.count("*") == 1 else f"{allowed} with one star in the name of the file"


def _suffixes(key: str) -> tuple[str, ...]:
    return SUFFIXES if key == "images" else SUFFIXES[-1:]


def _are_read(key: str) -> str:
    return f"{key} are read from files that end in {' or '.join(_suffixes(key))}"


def list_pairs(root: Path, layout: Layout, split: str) -> tuple[list[Pair], list[str]]:
    """Return the frames of `split` in order of their names, and all errors; with `val_fraction`, all frames.

    Where a list says which frames count, the others need no label.
    """
    split_name = layout.split_names[split]
    errors: list[str] = []
    images, labels = (
        _matching_files(root, key, getattr(layout, key).replace(_SPLIT, split_name), errors)
        for key in ("images", "labels")
    )
    wanted, read = images.keys() | labels, []
    if layout.list is not None:
        read = [layout.list.replace(_SPLIT, split_name)]
        wanted = _listed_frames(root, read[0], images, labels, errors)
    read += [files[key] for key in wanted for files in (images, labels) if key in files]
    errors += linked_folders(root, read)
    pairs = []
    for key in sorted(wanted):
        name = "_".join(key)
        # By default the group is the first folder that a star matches, or else each frame for itself.
        group: str | None = key[0]
        if layout.group:
            match = re.search(layout.group, name)
            group = match[min(1, match.re.groups)] if match else None  # None too where parentheses match nothing
        if key not in labels:
            errors.append(f"{root / images[key]}: image without a label")
        elif key not in images:
            errors.append(f"{root / labels[key]}: label without an image")
        elif group is None:
            errors.append(f"{root / images[key]}: group {layout.group!r} does not match its name '{name}'")
        else:
            pairs.append(Pair(name, group, images[key], labels[key]))
    if not pairs and not errors:
        errors.append(f"{root}: no file there is named like images: {layout.images.replace(_SPLIT, split_name)}")
    pairs.sort()
    for pair, following in zip(pairs, pairs[1:], strict=False):
        if pair.name == following.name:  # as of a_b/c and a/b_c
            errors.append(f"{root / following.image}: gives the name '{pair.name}' that {root / pair.image} has")
    return pairs, errors


def _matching_files(root: Path, key: str, pattern: str, errors: list[str]) -> dict[Key, str]:
    """Return the files that match a pattern, by the texts of its stars; skip hidden files."""
    pieces = PurePosixPath(pattern).as_posix().split("*")
    texts = re.compile("([^/]+)".join(map(re.escape, pieces)))
    files: dict[Key, str] = {}
    unread: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*".join(map(glob.escape, pieces)))):
        file, suffix = path.relative_to(root).as_posix(), path.suffix.lower()
        if any(part.startswith(".") for part in PurePosixPath(file).parts):
            continue
        if not path.is_file():
            if path.is_symlink() and not path.exists():
                errors.append(f"{path}: a link that leads nowhere")
            continue
        if not pieces[-1] and suffix not in _suffixes(key):
            if suffix in (*OTHER_SUFFIXES, *SUFFIXES):
                unread.setdefault(suffix, []).append(path)
            continue
        match = texts.fullmatch(file if pieces[-1] else file.removesuffix(path.suffix))
        if match is None:  # a star matches no text
            continue
        # NFC: a letter may be written in two ways, and systems differ in how they name files.
        stars = tuple(unicodedata.normalize("NFC", part) for part in match.groups())
        if any("\udc80" <= sign <= "\udcff" for sign in file):  # bytes that are no UTF-8
            errors.append(f"{root}: the name {ascii(file)} is not UTF-8")
        elif stars in files:
            errors.append(f"{path}: is of the same frame as {root / files[stars]}")
        else:
            files[stars] = file
    errors += [
        f"{paths[0]}: one of {len(paths)} files that end in {suffix}; {_are_read(key)}"
        for suffix, paths in unread.items()
    ]
    return files


def _listed_frames(
    root: Path, file: str, images: dict[Key, str], labels: dict[Key, str], errors: list[str]
) -> set[Key]:
    """Return the frames that the text `file` names, one a line.

    A line is the name of a frame, with or without suffix, or the path of its image, below the folder or anywhere; the
    path of its label may follow. Empty lines and comments, from #, are skipped.
    """
    try:
        lines = (root / file).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        errors.append(f"{root / file}: {error.strerror or error}; list: names it")
        return set()
    except UnicodeDecodeError as error:
        errors.append(f"{root / file}: not UTF-8 text ({error.reason} at byte {error.start}); list: names it")
        return set()
    key_of = {"_".join(key): key for key in images}
    image_of, label_of = (
        {unicodedata.normalize("NFC", path): key for key, path in files.items()} for files in (images, labels)
    )

    def frame_of(text: str, of_path: dict[str, Key]) -> Key | None:
        text = text.removeprefix("./")
        parts = text.split("/")
        for first in range(len(parts)):  # an absolute path, of this machine or another, ends like one below the folder
            if key := of_path.get("/".join(parts[first:])):
                return key
        text = text.strip("/").replace("/", "_")
        stem = text.removesuffix(Path(text).suffix) if Path(text).suffix.lower() in SUFFIXES else text
        return key_of.get(stem)

    wanted, wrong = set(), []
    for number, line in enumerate(lines, 1):
        text = unicodedata.normalize("NFC", line.strip())
        key = frame_of(text, image_of)
        # Names may have spaces and commas, so that each of these may be where the second column starts.
        columns = [(text[: gap.start()], text[gap.end() :]) for gap in re.finditer(r"[\s,;]+", text)]
        of_images = [(frame, image, label) for image, label in columns if (frame := frame_of(image, image_of))]
        if key is None and of_images:
            key = next((frame for frame, _, label in of_images if frame_of(label, label_of) == frame), None)
            if key is None:
                _, image, label = of_images[0]
                wrong.append(f"{root / file}:{number}: '{label}' is not the label of '{image}'")
                continue
        if key is not None:
            wanted.add(key)
        elif text and not text.startswith("#"):
            wrong.append(f"{root / file}:{number}: no image is named '{text}'")
    if not wanted and not wrong:
        wrong.append(f"{root / file}: names no frame; list: names it")
    errors += wrong
    return wanted
