"""Decode every frame once: from image files or the synthetic city to flat arrays that training maps into memory.

Each frame is read, checked and stored by one worker, which writes the frame's own rows of the arrays: the bytes do not
depend on the number of workers, and memory does not grow with the number of frames. N frames, H x W stored pixels.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from segdistill.base.class_table import IGNORE, ClassTable
from segdistill.base.errors import raise_together
from segdistill.base.files import atomic_directory, write_json
from segdistill.progress import Progress
from segdistill.sources import open_source
from segdistill.sources.frame import DataParams, Frame, FrameError, FrameSource, names_by_group
from segdistill.sources.frame_writer import Chunk, FrameFacts, FrameWriter, allocate

CHUNK_FRAMES = 4  # small, so that the last worker at work is not alone for long


def prepare(data: DataParams, seed: int, out: Path, workers: int | None = None) -> dict:
    """Write `out`/{train,holdout,val}/{images,labels}.npy and `out`/index.json, all at once, and return the index.

    images uint8 (N, H, W, 3) RGB; labels uint8 (N, H, W) classes, 255 = ignore. `seed` decides which train frames are
    held out, and draws the synthetic city. `workers` processes, by default one for each core that may be used.

    Raises:
        InputError: all faults of the source together, each with its path. An earlier `out` is then left as it was.
    """
    source = open_source(data, seed)
    frames, faults = _assign_splits(source, data.holdout_fraction, seed)
    listed = [frame for split in frames.values() for frame in split]
    size_px = tuple(data.size_px) if data.size_px else _first_size(source, listed)
    with atomic_directory(out) as folder:
        # Faults known by now already forbid a result; the frames are still read, to report all faults at once.
        keep = folder if size_px and not faults else None
        if keep:
            for split, members in frames.items():
                allocate(folder / split, len(members), size_px)
        chunks = [
            Chunk(split, first, members[first : first + CHUNK_FRAMES])
            for split, members in frames.items()
            for first in range(0, len(members), CHUNK_FRAMES)
        ]
        processes = max(1, min(workers or len(os.sched_getaffinity(0)), len(chunks)))
        read: dict[str, list[FrameFacts]] = {split: [] for split in frames}
        writer = FrameWriter(source, size_px, data.size_px is not None, keep)
        progress = Progress("prepare", len(listed), unit="frame")
        with progress, _mapped(writer, chunks, processes) as results:
            for chunk, facts in zip(chunks, results, strict=True):
                read[chunk.split] += facts
                progress.advance(len(facts))
        faults += [fault for facts in read.values() for frame in facts for fault in frame.faults]
        raise_together(faults, "the frames cannot be prepared")
        index = _index(data.source, source.table, size_px, frames, read)
        write_json(folder / "index.json", index)
    return index


def _assign_splits(source: FrameSource, holdout_fraction: float, seed: int) -> tuple[dict[str, list[Frame]], list[str]]:
    """Frames of train, holdout and val, and what is wrong with their listing."""
    train, faults = source.list_frames("train")
    val, more = source.list_frames("val")
    faults += more
    faults += [f"the {split} split has no frames" for split, found in (("train", train), ("val", val)) if not found]
    if len(train) == 1:
        faults.append(
            f"data.holdout_fraction: {holdout_fraction} of 1 train frame ({source.path_of(train[0])}); "
            "at least 2 are needed, one to train on and one to hold out"
        )
    held_out = names_by_group(train, holdout_fraction, seed)
    splits = {
        "train": [frame for frame in train if frame.name not in held_out],
        "holdout": [frame for frame in train if frame.name in held_out],
        "val": val,
    }
    return splits, faults


def _first_size(source: FrameSource, frames: list[Frame]) -> tuple[int, int] | None:
    """(H, W) that all frames have to have: that of the first one with a readable header."""
    for frame in frames:
        try:
            return source.size_px(frame)
        except FrameError:  # reported when the frame is read
            continue
    return None


def _index(
    source: str,
    table: ClassTable,
    size_px: tuple[int, int],
    frames: dict[str, list[Frame]],
    read: dict[str, list[FrameFacts]],
) -> dict:
    """The content of index.json; InputError when a split has no pixel of any class, so nothing to learn or score."""
    splits, fingerprinted, faults = {}, [list(size_px)], []
    for split, members in frames.items():
        pixels = sum(facts.pixels for facts in read[split])
        if pixels.sum() == 0:
            faults.append(f"the {split} split: every pixel of its {len(members)} frames is ignored ({IGNORE})")
            continue
        rows = [
            {"name": frame.name, "city": frame.city, "sequence": frame.sequence, "checksum": facts.checksum}
            for frame, facts in zip(members, read[split], strict=True)
        ]
        splits[split] = {"frames": rows, "class_frequency": (pixels / pixels.sum()).tolist()}
        fingerprinted.append([split, [[row["name"], row["checksum"]] for row in rows]])
    raise_together(faults, "labels without any evaluated class")
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
    """Yield the results of `writer` for all `chunks`, in order, computed in this process or in several others."""
    if processes == 1:
        yield map(writer, chunks)
        return
    # spawn: a fork would copy the locks of whatever threads the calling program runs (the progress bar is one).
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker, (writer,))
    try:
        yield pool.map(_run_chunk, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(writer: FrameWriter) -> None:
    global _writer
    _writer = writer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the others
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_chunk(chunk: Chunk) -> list[FrameFacts]:
    return _writer(chunk)
