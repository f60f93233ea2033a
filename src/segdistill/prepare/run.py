"""Read or render every frame once, and store it in arrays that training maps into memory.

Each frame is read, checked and stored by one worker, which writes the frame's own rows of the arrays: the bytes do not
depend on the number of workers, and memory does not grow with the number of frames. N frames, H x W stored pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from segdistill.core.errors import UserError, raise_all
from segdistill.core.files import atomic_directory, write_json
from segdistill.core.log import logger
from segdistill.core.progress import Progress
from segdistill.core.provenance import usable_cores
from segdistill.data.shards import shard_file, shards_of
from segdistill.formats.classes import IGNORE, ClassTable
from segdistill.prepare.sources import Frame, FrameError, FrameSource, draw_frames, draw_groups
from segdistill.prepare.unlabelled import UNLABELLED, WithUnlabelled

if TYPE_CHECKING:  # pydantic takes longer to load than a worker takes for a frame
    from segdistill.params.model import DataParams

SOURCES = ("synthetic", "cityscapes", "folder")
MAX_GROUPS_SHOWN = 30  # in a message
CHUNK_FRAMES = 4  # small, so that the last worker at work is not alone for long


def prepare(data: DataParams, seed: int, out: Path, workers: int | None = None) -> dict:
    """Write the shards of `out`/SPLIT/{images,labels} and `out`/index.json, all at once, and return the index.

    The splits are train, holdout and val, and unseen where `data` names unseen groups. `data.shards` describes shards.

    images uint8 (N, H, W, 3) RGB; labels uint8 (N, H, W) classes, 255 = ignore. `seed` chooses the train frames that
    are held out, and renders the synthetic city. There are `workers` processes, by default one per usable core.

    Raises:
        UserError: all errors of the source together, each with its path. An earlier `out` is then left as it was.
    """
    source = open_source(data, seed)
    frames, errors = _assign_splits(source, data, seed)
    if data.unlabelled is not None:
        source = WithUnlabelled.open(source, data.root, data.unlabelled)
        unlabelled, more = source.list_frames(UNLABELLED)
        errors += more
        # Students would train on the images that they are scored on.
        labelled = {source.path_of(frame) for split in frames.values() for frame in split}
        if both := [path for frame in unlabelled if (path := source.path_of(frame)) in labelled]:
            found = f"{len(both)} of its images are frames of a split, such as {both[0]}"
            errors.append(f"data.unlabelled: found '{data.unlabelled}'; {found}; allowed is a folder of other images")
        frames["train"] += unlabelled  # the last ones, so that labelled frames are a slice
    listed = [frame for split in frames.values() for frame in split]
    size_px = data.size_px
    if size_px is None:  # all frames have to have the size of the first one with a readable header
        for frame in listed:
            with suppress(FrameError):  # reported when the frame is read
                size_px = source.size_px(frame)
                break
    with atomic_directory(out) as folder:
        # Errors known by now already forbid a result; the frames are still read, to report all errors at once.
        keep = folder if size_px and not errors else None
        if keep and size_px:
            for split, members in frames.items():
                allocate(folder / split, len(members), size_px)
        chunks = [
            Chunk(split, number, first - shard.start, members[first : min(first + CHUNK_FRAMES, shard.stop)])
            for split, members in frames.items()
            for number, shard in enumerate(shards_of(len(members)))
            for first in shard[::CHUNK_FRAMES]
        ]
        processes = max(1, min(workers or usable_cores(), len(chunks)))
        read: dict[str, list[FrameFacts]] = {split: [] for split in frames}
        writer = FrameWriter(source, size_px, data.size_px is not None, keep)
        progress = Progress("prepare", len(listed), unit="frame")
        with progress, _mapped(writer, chunks, processes) as results:
            for chunk, facts in zip(chunks, results, strict=True):
                read[chunk.split] += facts
                progress.advance(len(facts))
        errors += [error for facts in read.values() for frame in facts for error in frame.errors]
        raise_all(errors, "the frames cannot be prepared")
        assert size_px is not None  # else no frame is readable, and each has an error
        index = _index(data.source, source.table, size_px, frames, read)
        write_json(folder / "index.json", index)
        pixels_C = np.sum([frame.pixels for facts in read.values() for frame in facts], axis=0)
        for suspicion in source.suspicions(pixels_C):
            logger.warning("%s", suspicion)
    return index


def open_source(data: DataParams, seed: int) -> FrameSource:
    """Return the source that `data` names; raise a UserError that names the params path of what is wrong with it."""
    # Imported here, so that a source loads only what it needs.
    if data.source == "synthetic":
        from segdistill.prepare.synthetic.source import SyntheticFrames

        if data.size_px is None:
            raise UserError("data.size_px: null; the synthetic city needs a size [height, width] in pixels")
        counts = {"train": data.synthetic.train_frames, "val": data.synthetic.val_frames}
        return SyntheticFrames(seed, counts, (data.size_px[0], data.size_px[1]))
    if data.source == "cityscapes":
        from segdistill.prepare.cityscapes import open_cityscapes

        return open_cityscapes(data.root)
    if data.source == "folder":
        from segdistill.prepare.folder import open_folder

        return open_folder(data.root)
    raise UserError(f"data.source: '{data.source}'; allowed: {', '.join(SOURCES)}")


def _assign_splits(source: FrameSource, data: DataParams, seed: int) -> tuple[dict[str, list[Frame]], list[str]]:
    """Return the frames of train, holdout, val and, where `data` names groups of it, unseen; and the errors of that."""
    holdout_fraction = data.holdout_fraction
    train, errors = source.list_frames("train")
    val, more = source.list_frames("val")
    errors += more
    unseen: list[Frame] = []
    if data.unseen_groups and not errors:
        train, val, unseen, errors = _take_unseen(train, val, data.unseen_groups)
    if not errors:  # else these say why
        errors += [f"the {split} split has no frames" for split, found in (("train", train), ("val", val)) if not found]
    if len(train) == 1:
        errors.append(
            f"data.holdout_fraction: {holdout_fraction} of 1 train frame ({source.path_of(train[0])}); "
            "at least 2 are needed, one to train on and one to hold out"
        )
    # Whole groups are held out, because frames of a group look alike.
    if source.independent_frames or data.holdout_by == "frames":
        held_out = draw_frames(train, holdout_fraction, seed)
    else:
        held_out = draw_groups(train, holdout_fraction, seed)
        if not held_out and len(train) > 1:
            held_out = draw_frames(train, holdout_fraction, seed)
            logger.warning(
                "data.holdout_fraction: all %d train frames are of one group, '%s'; its last %d are held out, and "
                "resemble those that are trained on",
                *(len(train), train[0].city, len(held_out)),
            )
        elif len(held_out) > 2 * max(holdout_fraction * len(train), 1):
            logger.warning(
                "data.holdout_fraction: %s of %d train frames, but %d are held out: groups are held out whole, and "
                "none is smaller",
                *(holdout_fraction, len(train), len(held_out)),
            )
    splits = {
        "train": [frame for frame in train if frame.name not in held_out],
        "holdout": [frame for frame in train if frame.name in held_out],
        "val": val,
    }
    return splits | ({"unseen": unseen} if unseen else {}), errors


def _take_unseen(
    train: list[Frame], val: list[Frame], groups: tuple[str, ...]
) -> tuple[list[Frame], list[Frame], list[Frame], list[str]]:
    """Return train and val without the frames of `groups`, these frames, and the errors of naming them."""
    known = sorted({frame.city for frame in (*train, *val)})
    if unknown := [group for group in groups if group not in known]:
        allowed = f"{', '.join(known[:MAX_GROUPS_SHOWN])}{', ...' * (len(known) > MAX_GROUPS_SHOWN)}"
        return train, val, [], [f"data.unseen_groups: found {', '.join(unknown)}; the groups of frames are {allowed}"]
    seen_train, seen_val = ([frame for frame in split if frame.city not in groups] for split in (train, val))
    taken = [frame for frame in train if frame.city in groups]
    if seen_val:
        taken += [frame for frame in val if frame.city in groups]
    else:  # with all its groups out of train, val as it is is unseen too
        seen_val = val
    errors = []
    if not seen_train:
        errors.append(f"data.unseen_groups: takes all {len(train)} train frames; leave a group to train on")
    elif not taken:
        errors.append("data.unseen_groups: names all groups of val and none of train, so val is unseen as it is")
    return seen_train, seen_val, sorted(taken, key=lambda frame: frame.name), errors


def _index(
    source: str,
    table: ClassTable,
    size_px: tuple[int, int],
    frames: dict[str, list[Frame]],
    read: dict[str, list[FrameFacts]],
) -> dict:
    """Return the content of index.json; raise a UserError when a split has no pixel of any class to learn or score."""
    splits: dict[str, dict] = {}
    fingerprinted: list[list] = [list(size_px)]
    errors = []
    for split, members in frames.items():
        pixels = np.sum([facts.pixels for facts in read[split]], axis=0)
        if pixels.sum() == 0:
            errors.append(f"the {split} split: every pixel of its {len(members)} frames is ignored ({IGNORE})")
            continue
        rows = [
            {"name": frame.name, "city": frame.city, "sequence": frame.sequence, "checksum": facts.checksum}
            for frame, facts in zip(members, read[split], strict=True)
        ]
        splits[split] = {"frames": rows, "class_frequency": (pixels / pixels.sum()).tolist()}
        fingerprinted.append([split, [[row["name"], row["checksum"]] for row in rows]])
        if unlabelled := sum(frame.split == UNLABELLED for frame in members):
            splits[split]["unlabelled"] = unlabelled
            fingerprinted.append([UNLABELLED, unlabelled])
    raise_all(errors, "labels without any evaluated class")
    facts = table.facts()
    return {
        "source": source,
        "size_px": list(size_px),
        "classes": facts["class_names"],
        "label_ids": facts["label_ids"],
        "colors": facts["colors"],
        "fingerprint": hashlib.sha256(json.dumps(fingerprinted).encode()).hexdigest(),
        "splits": splits,
    }


_writer: FrameWriter | None = None  # of this worker process: sent once, not with every chunk


@contextmanager
def _mapped(writer: FrameWriter, chunks: list[Chunk], processes: int) -> Iterator[Iterator[list[FrameFacts]]]:
    """Yield an iterator over the results of `writer` for all `chunks`, in order, from this process or several."""
    if processes == 1:
        yield map(writer, chunks)
        return
    # spawn: a fork would copy the locks of other threads of the calling program (the progress bar is one).
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, (writer,))
    try:
        yield pool.map(_run_chunk, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(writer: FrameWriter) -> None:
    global _writer
    _writer = writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)  # a killed parent cannot end its workers, which would wait for ever

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _run_chunk(chunk: Chunk) -> list[FrameFacts]:
    assert _writer is not None
    return _writer(chunk)


def allocate(folder: Path, frames: int, size_px: tuple[int, int]) -> None:
    """Create both arrays of one split; raise OSError now, not hours later, when the disk cannot hold them."""
    folder.mkdir()
    shapes = {"images": (*size_px, 3), "labels": size_px}
    for (number, shard), (name, shape) in itertools.product(enumerate(shards_of(frames)), shapes.items()):
        path = folder / shard_file(name, number)
        np.lib.format.open_memmap(path, "w+", np.uint8, (len(shard), *shape))
        if not hasattr(os, "posix_fallocate"):  # macOS has none
            continue
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror} ({path.stat().st_size} bytes)", str(path)) from None


def _write_row(stored: np.memmap, row: int, values: np.ndarray) -> None:
    """Store `values` as a row, by writing to the file: through the map each 4 KiB would cost a page fault."""
    with Path(str(stored.filename)).open("r+b") as file:
        start = stored.offset + row * values.nbytes
        file.seek(start)
        file.write(np.ascontiguousarray(values).data)
        file.flush()
        if hasattr(os, "posix_fadvise"):
            # Linux begins to write these pages to the disk now, while the next frame is decoded, and not at the sync.
            os.posix_fadvise(file.fileno(), start, values.nbytes, os.POSIX_FADV_DONTNEED)


class Chunk(NamedTuple):
    """Frames whose rows follow one another in a shard of `split`."""

    split: str
    shard: int
    first_row: int
    frames: list[Frame]


class FrameFacts(NamedTuple):
    """What one frame adds to the index: its checksum and valid pixels per class (C,), or its errors."""

    checksum: str
    pixels: np.ndarray
    errors: list[str]


@dataclass(frozen=True)
class FrameWriter:
    """Reads frames and stores them, in worker processes."""

    source: FrameSource
    size_px: tuple[int, int] | None  # (H, W) to store; None when no frame is readable
    resize: bool  # else a frame of another size is an error
    folder: Path | None  # None checks the frames and stores nothing

    def __call__(self, chunk: Chunk) -> list[FrameFacts]:
        if self.folder:
            images, labels = (
                np.load(self.folder / chunk.split / shard_file(name, chunk.shard), mmap_mode="r")
                for name in ("images", "labels")
            )
        facts = []
        for row, frame in enumerate(chunk.frames, chunk.first_row):
            try:
                image, classes, checksum = self.source.read(frame)
                assert self.size_px is not None  # a frame is readable, so there is a size
                if image.shape[:2] != self.size_px:
                    if not self.resize:
                        found, first = list(image.shape[:2]), list(self.size_px)
                        sizes = f"size {found}, but the first frame has {first}; data.size_px can resize all"
                        raise FrameError([f"{self.source.path_of(frame)}: {sizes}"])
                    width_height = self.size_px[::-1]
                    # Pillow widens the bilinear filter when it reduces, so that every pixel of the source counts.
                    image = np.asarray(Image.fromarray(image).resize(width_height, Image.Resampling.BILINEAR))
                    classes = np.asarray(Image.fromarray(classes).resize(width_height, Image.Resampling.NEAREST))
            except FrameError as error:
                facts.append(FrameFacts("", np.zeros(0, int), error.errors))
                continue
            if self.folder:
                _write_row(images, row, image)
                _write_row(labels, row, classes)
            # Pillow counts bytes in C; np.bincount widens them to 64 bits first.
            counts = Image.fromarray(classes).histogram()[: len(self.source.table)]
            facts.append(FrameFacts(checksum, np.array(counts), []))
        return facts
