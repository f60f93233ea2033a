"""What a crop costs to load on one core, and what of the disk is read for it (5).

Both loaders end with a normalised float32 image and int64 labels, as the network and the loss take them. Ours
also loads the teacher's logits. Frames are 1024x2048, as PNG files and as `prepare` writes them.

The usual loader decodes a whole frame for each crop, so its time hardly depends on the crop's size; our time
grows with the crop. For a large crop, most of it is writing floats, which a GPU does itself (5-768-host).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.streets import ON_CPU, ON_GPU, QUICK, VIEWS, Sizes, Streets, streets_on_disk
from benchmarks.usual_loop import StreetFiles
from segdistill.data.sampling import BatchSampler
from segdistill.training.batches import CropLoader

CPU = torch.device("cpu")


class Plan(NamedTuple):
    """Counted rounds; crops of each loader in a round; batches that are read from the disk, to count their bytes."""

    rounds: int
    usual_crops: int
    our_crops: int
    our_large_crops: int
    cold_batches: int


# So many that both take about as long, so that other work on the machine slows both alike.
FULL, TRIAL = Plan(9, 4, 400, 64, 24), Plan(2, 2, 16, 16, 2)


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 5 (256x256 crops, float16 logits), 5-uint8, 5-768, 5-768-host and 5-bytes."""
    plan, small, large = (TRIAL, QUICK, QUICK) if quick else (FULL, ON_CPU, ON_GPU._replace(batch=4))
    streets = streets_on_disk(small.frame_px, small.frames)
    conditions = {"frame_px": list(small.frame_px), "batch": small.batch, "png_bytes": streets.png_bytes_per_frame}
    cases = {
        "5": Case(small, plan.our_crops, target="at least 50"),
        "5-uint8": Case(small, plan.our_crops, dtype="uint8", target="at least 50"),
        "5-768": Case(large, plan.our_large_crops),
        "5-768-host": Case(large, plan.our_large_crops, floats=False),
    }
    rows = []
    with one_core():
        for name, case in cases.items():
            row, crops_per_s = _compared(name, case, streets, plan)
            rows.append(row)
            conditions[name] = {"crop_px": list(case.sizes.crop_px)} | crops_per_s
    for name, sizes in (("5-bytes", small), ("5-bytes-768", large)):
        ratios = cold_bytes_read(streets, sizes, plan.cold_batches)
        if ratios is not None:
            rows.append(ratio_row(name, f"bytes read from disk / bytes of a {_size(sizes)} crop, none cached", ratios))
    return conditions, rows


class Case(NamedTuple):
    """One comparison: sizes, our crops in a round, dtype of the logits, and whether our crops end as floats."""

    sizes: Sizes
    our_crops: int
    dtype: str = "float16"
    floats: bool = True
    target: str | None = None


def _compared(name: str, case: Case, streets: Streets, plan: Plan) -> tuple[Row, dict]:
    """Return the row of a comparison, and the crops per second of both loaders."""
    sizes = case.sizes
    loader = our_loader(streets, sizes, case.dtype)
    kinds = {
        "usual": usual_crops(streets, sizes, plan.usual_crops),
        "ours": our_batches(loader, case.our_crops // sizes.batch, case.floats),
    }
    taken_s = seconds_in_turn(kinds, plan.rounds)
    usual_s, ours_s = taken_s["usual"] / plan.usual_crops, taken_s["ours"] / case.our_crops
    what = f"{_size(sizes)} crops per second and core, {case.dtype} logits / usual loader"
    if not case.floats:
        what += "; uint8 batches, for a GPU to convert"
    crops_per_s = {
        "usual_crops_per_s": round(float(1 / np.median(usual_s)), 1),
        "our_crops_per_s": round(float(1 / np.median(ours_s)), 1),
    }
    return ratio_row(name, what, usual_s / ours_s, case.target), crops_per_s


def _size(sizes: Sizes) -> str:
    return f"{sizes.crop_px[0]}x{sizes.crop_px[1]}"


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Pin this process, and torch in it, to one core."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def our_loader(streets: Streets, sizes: Sizes, dtype: str) -> CropLoader:
    """Return the library's loader with logits stored as `dtype`."""
    origins = streets.views(sizes.crop_px).origins()
    batches = BatchSampler(0, "loading", len(streets.split), VIEWS, sizes.batch, flip_probability=0.5, jitter=0.0)
    return CropLoader(streets.split, batches, origins, sizes.crop_px, streets.stored_logits(sizes.crop_px, dtype))


def our_batches(loader: CropLoader, count: int, floats: bool) -> Callable[[], None]:
    """Return a call that loads `count` batches; `floats` converts them to what network and losses take."""

    def load() -> None:
        for step in range(count):
            batch = loader.load(step)
            if floats:
                batch.inputs(CPU), batch.targets(CPU), batch.teacher_logits(CPU)

    return load


def usual_crops(streets: Streets, sizes: Sizes, count: int) -> Callable[[], None]:
    """Return a call that reads `count` crops from the usual data set of PNG files."""
    files = StreetFiles(streets.png_pairs, sizes.crop_px, count)

    def load() -> None:
        for index in range(count):
            files[index]

    return load


def cold_bytes_read(streets: Streets, sizes: Sizes, batches: int) -> np.ndarray | None:
    """Return bytes read from the disk over bytes of the batch, for each; None where the system does not count them."""
    loader = our_loader(streets, sizes, "float16")
    arrays = (streets.split.images, streets.split.labels, *loader.cached.arrays)
    files = {_file_of(shard) for array in arrays for shard in array.shards}
    ratios = np.empty(batches)
    for step in range(batches):
        loader.drop_pages()  # the kernel keeps pages that a process maps
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)  # the kernel does not drop dirty pages
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        before = _bytes_read()
        batch = loader.load(step)
        if before is None or _bytes_read() == before:  # not Linux, or a file system in memory
            return None
        needed = batch.images.nbytes + batch.labels.nbytes + batch.logits.values.nbytes
        ratios[step] = (_bytes_read() - before) / needed
    return ratios


def _file_of(array: np.ndarray) -> Path:
    while not (isinstance(array, np.memmap) and array.filename):
        array = array.base
    return Path(array.filename)


def _bytes_read() -> int | None:
    """Return the bytes that this process has made the disk read; None where the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))
