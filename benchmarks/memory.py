"""Peak memory of a training on all of Cityscapes, 2,975 frames of 1024x2048, over that on a resident batch (11).

The arrays are mapped from sparse files of the full size: they take no disk, but reading a hole takes a page of the
page cache and of the process's memory, as data would. Each training is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import torch

from benchmarks.our_loop import STUDENT, our_compute, student_settings
from benchmarks.rows import Row, ratio_row
from benchmarks.streets import ON_CPU, QUICK, STRIDE, Sizes
from segdistill.data.arrays import open_array
from segdistill.data.prepared import Split
from segdistill.data.sampling import BatchSampler, ViewSpec
from segdistill.data.shards import shard_file
from segdistill.data.teacher_cache import LOGITS, StoredLogits
from segdistill.nets.device import resolve_device
from segdistill.nets.registry import build
from segdistill.prepare.cityscapes import CLASSES
from segdistill.student.distillation import Distillation
from segdistill.training.batches import CropLoader
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import Job, train

FRAMES, VIEWS = 2975, 8  # of the train split; crop views of each
SAMPLES_PER_S = 50


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 11 (all memory of the process) and 11-anon (without pages of files)."""
    sizes, steps, rounds = (QUICK, 2, 1) if quick else (ON_CPU, 24, 3)
    peaks = {"mapped": [], "resident": []}
    with tempfile.TemporaryDirectory(prefix="segdistill-bench-") as folder:
        shapes = _shapes(sizes, FRAMES)
        for name, (dtype, shape) in shapes.items():  # sparse files
            np.lib.format.open_memmap(Path(folder) / name, "w+", dtype, shape)
        mapped_bytes = sum((Path(folder) / name).stat().st_size for name in shapes)
        for _ in range(rounds):
            for kind, found in peaks.items():
                found.append(_in_a_process(kind, folder, quick, steps))
    all_mib, anon_mib = (
        {kind: np.array([peak[which] for peak in found]) / 2**20 for kind, found in peaks.items()}
        for which in ("rss", "anon")
    )
    what = "peak memory of distilling on 2,975 frames of 1024x2048 / on a resident batch"
    rows = [
        ratio_row("11", what, all_mib["mapped"] / all_mib["resident"], "at most 1.2"),
        ratio_row("11-anon", f"{what}, without pages of files", anon_mib["mapped"] / anon_mib["resident"]),
    ]
    conditions = {
        "student": STUDENT,
        "frame_px": list(sizes.frame_px),
        "crop_px": list(sizes.crop_px),
        "batch": sizes.batch,
        "steps": steps,
        "mapped_gb": round(mapped_bytes / 1e9, 1),
        "resident_peak_mib": round(float(np.median(all_mib["resident"]))),
        "mapped_peak_mib": round(float(np.median(all_mib["mapped"]))),
    }
    return conditions, rows


def _shapes(sizes: Sizes, frames: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    grid = (sizes.crop_px[0] // STRIDE, sizes.crop_px[1] // STRIDE)
    return {
        shard_file("images", 0): (np.dtype(np.uint8), (frames, *sizes.frame_px, 3)),
        shard_file("labels", 0): (np.dtype(np.uint8), (frames, *sizes.frame_px)),
        shard_file(LOGITS, 0): (np.dtype(np.float16), (frames, VIEWS, *grid, CLASSES)),
    }


def _in_a_process(kind: str, folder: str, quick: bool, steps: int) -> dict:
    command = [sys.executable, "-m", "benchmarks.memory", kind, folder, str(steps), *(["--quick"] if quick else [])]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _job(kind: str, folder: Path, sizes: Sizes, steps: int) -> Job:
    """Return a training on the mapped arrays, or on arrays in memory that hold one batch of crops."""
    if kind == "mapped":
        frames, frame_px = FRAMES, sizes.frame_px
        arrays = [open_array(folder / name, "") for name in _shapes(sizes, frames)]
    else:
        frames, frame_px = sizes.batch, sizes.crop_px
        small = sizes._replace(frame_px=frame_px)
        arrays = [np.zeros(shape, dtype) for dtype, shape in _shapes(small, frames).values()]
    images, labels, logits = arrays
    stored = StoredLogits(logits, None, logits.shape[2:4], STRIDE)
    settings = student_settings().model_copy(
        update={
            "teacher": "views",
            "steps": steps,
            "batch_size": sizes.batch,
            "evaluate_every_steps": 0,
            "checkpoint_every_steps": steps,
        }
    )
    crops = CropLoader(
        Split(images, labels, tuple(map(str, range(frames)))),
        BatchSampler(0, "memory", frames, VIEWS, sizes.batch, flip_probability=0.5, jitter=0.0),
        ViewSpec("", frames, frame_px, sizes.crop_px, VIEWS, STRIDE, seed=0).origins(),
        sizes.crop_px,
        stored,
    )
    torch.manual_seed(0)
    # The baseline returns freed memory to the kernel, which is glibc's default.
    compute = our_compute() if kind == "mapped" else resolve_device("cpu", "auto", 0)
    distillation = Distillation(settings, compute)
    return Job("memory", build(STUDENT, CLASSES), crops, settings, compute, distillation)


class _Peaks:
    """The highest memory of this process inside the context, in bytes: rss all of it, anon without pages of files."""

    def __enter__(self) -> _Peaks:
        self.highest = {"rss": 0, "anon": 0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(1 / SAMPLES_PER_S):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
            for key, field in (("rss", "VmRSS"), ("anon", "RssAnon")):
                self.highest[key] = max(self.highest[key], 1024 * kib[field])


def main() -> None:
    parser = argparse.ArgumentParser(description="one training, for `measure`")
    parser.add_argument("kind", choices=("mapped", "resident"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    scratch_root = given.folder / f"scratch-{os.getpid()}"
    with Checkpointer("memory", "benchmark", scratch_root) as checkpointer, _Peaks() as peaks:
        train(_job(given.kind, given.folder, QUICK if given.quick else ON_CPU, given.steps), checkpointer)
    print(json.dumps(peaks.highest))


if __name__ == "__main__":
    main()
