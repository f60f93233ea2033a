"""The cache of teacher logits and grids of runs, calculated from rates measured here: bytes, hours, what limits them.

    python -m benchmarks.scaling                             # measure and print the tables of docs/scaling.md
    python -m benchmarks.scaling --write                     # and put them into that page
    python -m benchmarks.scaling --teacher-crops-per-s 40 --step-s 0.2   # the rates of another device

Let nothing else run meanwhile. N frames of 1024x2048, K views of 768x768 pixels each, 19 classes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.our_loop import TEACHER, random_teacher
from benchmarks.table import put_between
from segdistill.core.errors import exit_on_user_error
from segdistill.core.provenance import processor
from segdistill.data.sampling import ViewSpec
from segdistill.nets.device import TorchPredictor, resolve_device
from segdistill.prepare.cityscapes import CLASSES
from segdistill.teacher_logits.shards import logits_on_grid
from segdistill.teacher_logits.writer import LogitsWriter, stored_shape

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
FRAME_PX, CROP_PX = (1024, 2048), (768, 768)
TRAIN_FRAMES = 2975  # of Cityscapes, finely annotated
SIZES = (TRAIN_FRAMES, 20_000, 100_000)
FORMS = {("float16", 4): "float16 /4", ("uint8", 4): "uint8 /4", ("float16", 8): "float16 /8", ("uint8", 8): "uint8 /8"}
STEPS, BATCH = 60_000, 16  # of one run of profiles/cityscapes.yaml, both phases
RESULTS = Path(__file__).with_name("results.json")
DEVICES, OF_ONE_MACHINE = (1, 8, 64), 8  # a machine holds so many of them at most
ASSUMED_DEVICE = (40.0, 0.2)  # teacher crops per second, seconds per step: a device whose rates nobody measured
GRIDS = ((8, TRAIN_FRAMES), (1000, TRAIN_FRAMES), (8, 1_000_000))  # runs, frames


class Rates(NamedTuple):
    """The measured rates: crops, bytes and frames per second."""

    teacher_crops_per_s: float
    uint8_crops_per_s: float
    write_bytes_per_s: float
    md5_bytes_per_s: float
    drawn_frames_per_s: float
    step_s: float
    where: str


def cache_bytes(frames: int, views: int, dtype: str, stride: int) -> int:
    """Return the bytes of the stored logits, as `LogitsWriter` writes them."""
    spec = ViewSpec("", frames, FRAME_PX, CROP_PX, views, stride, seed=0)
    *lead, height, width, classes = stored_shape("views", spec, CLASSES)
    rows = int(np.prod(lead)) * height
    scale_bytes = rows * 2 * classes * 2 if dtype == "uint8" else 0
    return rows * width * classes * np.dtype(dtype).itemsize + scale_bytes


def measured(teacher_crops_per_s: float | None, step_s: float | None) -> Rates:
    """Return the rates of each part of the work on this machine; measure the teacher's where it is None.

    A step is that of row 1 of results.json where none is given, times the pixels that it has more.
    """
    compute = resolve_device("auto", "auto", 0)
    busy = os.getloadavg()[0]
    where = (
        f"{processor()}, {compute.threads} threads, {str(compute.dtype).removeprefix('torch.')}, load {busy:.1f} before"
    )
    images = np.random.default_rng(0).integers(0, 256, (1, *CROP_PX, 3), np.uint8)
    grid = (CROP_PX[0] // 4, CROP_PX[1] // 4)
    if teacher_crops_per_s is None:
        teacher = TorchPredictor(random_teacher(compute), compute)
        if compute.device.type == "cuda":
            images = images.repeat(8, axis=0)
        teacher_crops_per_s = len(images) / _seconds(lambda: logits_on_grid(teacher, images, grid))
    else:
        where += "; the teacher's rate was given"
    if step_s is None:
        steps = json.loads(RESULTS.read_text(encoding="utf-8"))["conditions"]["steps"]
        height_px, width_px = steps["crop_px"]
        step_s = steps["seconds_per_step"]["ours"] * BATCH * CROP_PX[0] * CROP_PX[1]
        step_s /= steps["batch"] * height_px * width_px
    with tempfile.TemporaryDirectory(prefix="segdistill-bench-") as folder:
        crop = np.random.default_rng(0).standard_normal((1, *grid, CLASSES), np.float32)
        with LogitsWriter(Path(folder), "uint8", crop.shape) as writer:
            uint8_s = _seconds(lambda: writer.append(crop))
        block = np.random.default_rng(0).bytes(2**28)
        write_s = _seconds(lambda: _write(Path(folder) / "block", block))
    return Rates(
        teacher_crops_per_s,
        1 / uint8_s,
        len(block) / write_s,
        len(block) / _seconds(lambda: hashlib.md5(block, usedforsecurity=False).digest()),
        1000 / _seconds(ViewSpec("", 1000, FRAME_PX, CROP_PX, 8, 4, seed=0).origins),
        step_s,
        where,
    )


def _seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Return the median seconds of `rounds` calls, after one that is not counted."""
    taken_s = []
    for number in range(rounds + 1):
        started = time.perf_counter()
        work()
        if number:
            taken_s.append(time.perf_counter() - started)
    return float(np.median(taken_s))


def _write(path: Path, block: bytes) -> None:
    with path.open("wb") as file:
        file.write(block)
        file.flush()
        os.fsync(file.fileno())


def tables(rates: Rates) -> str:
    """Return the rates, and the sizes and times that follow from them, as Markdown."""
    lines = [
        f"Measured: {rates.where}.",
        "",
        f"Teacher ({TEACHER}) {rates.teacher_crops_per_s:.3g} crops/s; packing to uint8 and writing "
        f"{rates.uint8_crops_per_s:.3g} crops/s; disk {rates.write_bytes_per_s / 1e6:.0f} MB/s written; MD5 "
        f"{rates.md5_bytes_per_s / 1e6:.0f} MB/s; views of {rates.drawn_frames_per_s:.0f} frames drawn in a second.",
        "",
        f"{TRAIN_FRAMES:,} frames; hours of the teacher, minutes to write and to hash float16 at stride 4:",
        "",
        "| K | " + " | ".join(f"{name} GB" for name in FORMS.values()) + " | teacher h | write min | MD5 min |",
        "|---:|" + "---:|" * (len(FORMS) + 3),
    ]
    for views in (2, 4, 8, 16):
        stored = [cache_bytes(TRAIN_FRAMES, views, *form) for form in FORMS]
        teacher_h = TRAIN_FRAMES * views / rates.teacher_crops_per_s / 3600
        float16_bytes = cache_bytes(TRAIN_FRAMES, views, "float16", 4)
        write_min, md5_min = (float16_bytes / rate / 60 for rate in (rates.write_bytes_per_s, rates.md5_bytes_per_s))
        cells = [f"{size / 1e9:.1f}" for size in stored]
        cells += [_hours(teacher_h), f"{write_min:.1f}", f"{md5_min:.1f}"]
        lines.append(f"| {views} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"K = 8, stride 4, more frames; teacher forwards of the cache, over those of a live teacher in one run of "
        f"{STEPS:,} steps of {BATCH} crops:",
        "",
        "| N | images and labels GB | float16 GB | uint8 GB | teacher h | forwards | / live, 1 run | / live, 8 runs "
        "| MD5 h, uint8 | s to draw the views |",
        "|---:|" + "---:|" * 9,
    ]
    lines += [*(_row_of_size(frames, rates) for frames in SIZES), "", *_grids(rates)]
    return "\n".join(lines)


def _grids(rates: Rates) -> list[str]:
    """Return the lines of the table on grids of runs, on these devices and on assumed ones.

    A run of its own goes to each device; more devices than runs share the batches of a run, at best without any loss.
    Views are computed on the devices of one machine, by one stage, and only those that the runs draw are.
    """
    teacher_crops_per_s, step_s = ASSUMED_DEVICE
    assumed = rates._replace(teacher_crops_per_s=teacher_crops_per_s, step_s=step_s)
    lines = [
        f"Runs of {STEPS:,} steps of {BATCH} crops, K = 8, uint8, stride 4. A step is {rates.step_s:.1f} s here. The "
        f"columns 'assumed' are for devices that make a step in {step_s} s and {teacher_crops_per_s:g} teacher crops a "
        "second. Nobody measured these; `--step-s` and `--teacher-crops-per-s` take your own.",
        "",
        "| runs | frames | devices | teacher h, here | students h, here | teacher h, assumed | students h, assumed "
        "| GB to each machine | GB to all |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for runs, frames in GRIDS:
        views = min(frames * 8, STEPS * BATCH)
        stored_gb = cache_bytes(frames, 8, "uint8", 4) * views / (frames * 8) / 1e9
        frames_gb = frames * FRAME_PX[0] * FRAME_PX[1] * 4 / 1e9
        for devices in DEVICES:
            machines = -(-devices // OF_ONE_MACHINE)
            rounds = -(-runs // devices) if devices <= runs else runs / devices
            cells = [f"{runs:,}", f"{frames:,}", str(devices)]
            for of in (rates, assumed):
                teacher_h = views / of.teacher_crops_per_s / min(devices, OF_ONE_MACHINE) / 3600
                cells += [_hours(teacher_h), _hours(rounds * STEPS * of.step_s / 3600)]
            moved_gb = stored_gb + frames_gb
            lines.append("| " + " | ".join([*cells, f"{moved_gb:,.0f}", f"{moved_gb * machines:,.0f}"]) + " |")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _row_of_size(frames: int, rates: Rates) -> str:
    forwards, live = frames * 8, STEPS * BATCH
    packed = cache_bytes(frames, 8, "uint8", 4)
    cells = (
        f"{frames:,}",
        f"{frames * FRAME_PX[0] * FRAME_PX[1] * 4 / 1e9:.0f}",
        f"{cache_bytes(frames, 8, 'float16', 4) / 1e9:.0f}",
        f"{packed / 1e9:.0f}",
        _hours(forwards / rates.teacher_crops_per_s / 3600),
        f"{forwards:,}",
        f"{forwards / live:.3f}",
        f"{forwards / live / 8:.3f}",
        f"{packed / rates.md5_bytes_per_s / 3600:.2f}",
        f"{frames / rates.drawn_frames_per_s:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher-crops-per-s", type=float, help="instead of measuring it here")
    parser.add_argument("--step-s", type=float, help="of a student, instead of that of row 1 of results.json")
    parser.add_argument("--write", action="store_true", help=f"also write the tables into {PAGE.name}")
    given = parser.parse_args()
    with exit_on_user_error():
        text = tables(measured(given.teacher_crops_per_s, given.step_s))
        print(text)
        if given.write:
            put_between(PAGE, "measured", text)


if __name__ == "__main__":
    main()
