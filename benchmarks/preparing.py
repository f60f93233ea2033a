"""Time of `prepare` per frame against the few lines that anybody would write for it, and its memory (10)."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, ImageFilter

from benchmarks.rows import Row, ratio_row, seconds_in_turn
from segdistill.params.model import DataParams, SyntheticParams
from segdistill.prepare import images as png_images
from segdistill.prepare.cityscapes import IMAGE_FOLDER, IMAGE_SUFFIX, LABEL_FOLDER, LABEL_SUFFIX, TRAIN_ID_OF_LABEL_ID
from segdistill.prepare.run import prepare
from segdistill.prepare.synthetic.render import write_city

# The noise of the drawn frames makes larger PNGs than a camera; with this blur they have the 2.3 MB of Cityscapes.
SOFTENED_PX = 0.9
PEAK_MEMORY = """
import re, sys
from pathlib import Path
from benchmarks.preparing import prepare_city
prepare_city(Path(sys.argv[1]), Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows: time per frame, frames per second, memory with four times the frames."""
    size_px, frames, rounds = ((256, 512), 4, 2) if quick else ((1024, 2048), 12, 7)
    with tempfile.TemporaryDirectory() as scratch, _one_core():
        folder = Path(scratch)
        pairs = _write_streets(folder / "city", frames, size_px)
        ours = functools.partial(prepare_city, folder / "city", folder / "ours")
        kinds = {
            "plain": functools.partial(_plain, pairs, folder / "plain"),
            "ours": ours,
            "pillow": functools.partial(_with_pillow_alone, ours),
        }
        taken_s = seconds_in_turn(kinds, rounds)
        _repeat_train_frames(folder / "city", folder / "large", 4)
        peak_kB = [_peak_memory_kB(folder / name, folder / f"{name}_out") for name in ("city", "large")]
        conditions = {
            "frame_px": list(size_px),
            "frames": len(pairs),
            "png_bytes_per_frame": sum(path.stat().st_size for pair in pairs for path in pair) // len(pairs),
            "cores": 1,
            "peak_memory_MB": [round(peak / 1000) for peak in peak_kB],
            "decoder": "kornia-rs" if png_images.fast_decoder() else "Pillow",
        }
    frames_per_s = len(pairs) / taken_s["ours"]
    low, high = (round(float(np.quantile(frames_per_s, q)), 1) for q in (0.1, 0.9))
    return conditions, [
        ratio_row(
            "10",
            "preparing a frame: plain Pillow, table, np.save / ours",
            taken_s["plain"] / taken_s["ours"],
            "at least 2",
        ),
        ratio_row("10-pillow", "the same, ours without kornia-rs", taken_s["plain"] / taken_s["pillow"]),
        Row("10-frames", "prepare, one core", round(float(np.median(frames_per_s)), 1), None, "frames/s", (low, high)),
        Row(
            "10-memory",
            "peak memory of prepare: 4 times the train frames / once",
            round(peak_kB[1] / peak_kB[0], 3),
            "at most 1.1",
            "ratio",
            None,
        ),
    ]


def prepare_city(city: Path, out: Path) -> None:
    """Call `prepare` as the stage does, in one process."""
    unread = SyntheticParams(train_frames=1, val_frames=1)
    data = DataParams(source="cityscapes", root=str(city), size_px=None, holdout_fraction=0.1, synthetic=unread)
    prepare(data, seed=0, out=out, workers=1)


def _plain(pairs: list[tuple[Path, Path]], out: Path) -> None:
    """Write the same arrays without checks and checksums, one file each."""
    out.mkdir(exist_ok=True)
    for number, (photograph, label) in enumerate(pairs):
        np.save(out / f"{number}_image.npy", np.array(Image.open(photograph).convert("RGB")))
        np.save(out / f"{number}_label.npy", TRAIN_ID_OF_LABEL_ID[np.array(Image.open(label))])


def _with_pillow_alone(work: functools.partial) -> None:
    with mock.patch.object(png_images, "fast_decoder", lambda: None):
        work()


@contextmanager
def _one_core() -> Iterator[None]:
    """Pin this process, and those that it starts, to one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _write_streets(city: Path, frames: int, size_px: tuple[int, int]) -> list[tuple[Path, Path]]:
    """Write a Cityscapes tree of `frames` train frames and two of val; return the pairs of photograph and label."""
    write_city(city, seed=0, train_frames=frames, val_frames=2, size_px=size_px)
    pairs = []
    for photograph in soften(city):
        label = photograph.name.replace(IMAGE_SUFFIX, LABEL_SUFFIX)
        pairs.append((photograph, city / LABEL_FOLDER / photograph.parent.relative_to(city / IMAGE_FOLDER) / label))
    return pairs


def soften(city: Path) -> list[Path]:
    """Blur the photographs of a Cityscapes tree, so that their files are no larger than a camera's; return them."""
    photographs = sorted(city.glob(f"{IMAGE_FOLDER}/*/*/*{IMAGE_SUFFIX}"))
    for path in photographs:
        with Image.open(path) as image:
            image.filter(ImageFilter.GaussianBlur(SOFTENED_PX)).save(path)
    return photographs


def _repeat_train_frames(city: Path, larger: Path, times: int) -> None:
    """Hard-link every train frame of `city` `times` times into a new tree, under other sequence numbers."""
    for path in city.rglob("*.png"):
        town, sequence, rest = path.name.split("_", 2)
        for copy in range(times if path.parts[-3] == "train" else 1):
            name = f"{town}_{int(sequence) + 1000 * copy:06d}_{rest}"
            link = larger / path.relative_to(city).with_name(name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.hardlink_to(path)


def _peak_memory_kB(city: Path, out: Path) -> int:  # noqa: N802 - kB is the unit
    """Return the peak resident memory of a process that prepares `city`, mapped files and libraries included."""
    command = [sys.executable, "-c", PEAK_MEMORY, str(city), str(out)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])
