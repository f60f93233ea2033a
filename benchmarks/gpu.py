"""Checks of a GPU, one after the other: what `tools/gpu_check.py` runs.

With `small` each check runs on tiny frames and few steps, so that the code can be tried on a CPU; its numbers then mean
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils import deterministic

from benchmarks.our_loop import (
    STUDENT,
    TEACHER,
    OurLoop,
    finish,
    next_steps,
    our_compute,
    random_teacher,
    student_settings,
    through_compiler,
)
from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.steps import Plan, measure_on
from benchmarks.streets import ON_GPU, STRIDE, Sizes, streets_on_disk
from segdistill.data.sampling import ViewSpec
from segdistill.nets.device import TorchPredictor
from segdistill.nets.registry import build
from segdistill.params.read import load_params
from segdistill.prepare.cityscapes import CLASSES
from segdistill.prepare.run import prepare
from segdistill.scoring.evaluate import classes_of
from segdistill.student.run import distill, finetune
from segdistill.teacher.check import check_teacher
from segdistill.teacher_logits.build import teacher_logits
from segdistill.teacher_logits.overlap import Overlap
from segdistill.teacher_logits.shards import logits_on_grid
from segdistill.teacher_logits.writer import LogitsWriter, stored_shape
from segdistill.training.batches import CropBatch, CropLoader
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
PLAN = Plan(usual=(6, 3), compiled=False, cached=(10, 4), whole=(20, 5))
SMALL_SIZES = Sizes((128, 256), (32, 32), 2, frames=4)
SMALL = Plan(usual=(1, 1), compiled=False, cached=(1, 1), whole=(1, 1))
STEPS = 8  # of a training whose bytes are compared; it is stopped after six
RUN = "a03-lr01"  # of the tiny profile
TIMEOUT_S = 240  # of a process


class Setup(NamedTuple):
    """The device to check, cpu or cuda, and whether to be quick about it."""

    device: str
    small: bool

    @property
    def sizes(self) -> Sizes:
        """Return the sizes of frames and of crops."""
        return SMALL_SIZES if self.small else ON_GPU

    def ours(self) -> OurLoop:
        """Return what makes jobs of the training loop."""
        settings = student_settings("default" if self.small else "cityscapes")
        streets = streets_on_disk(self.sizes.frame_px, self.sizes.frames)
        return OurLoop(streets, self.sizes, our_compute(self.device), settings)


def gpu_tests(setup: Setup) -> list[Row]:
    """Run the tests that are marked gpu; on a CPU they are skipped."""
    files = [
        str(file)
        for file in sorted((ROOT / "tests" / "unit").rglob("test_*.py"))
        if re.search(r"mark\.gpu|needs_gpu", file.read_text(encoding="utf-8"))
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    if done.returncode or not counts:
        print(done.stdout[-6000:], done.stderr[-2000:])
    failed = counts.get("failed", 0) + counts.get("error", 0) + (done.returncode != 0 and not counts)
    note = ", ".join(f"{count} {word}" for word, count in counts.items())
    return [Row("tests", "tests marked gpu that fail", failed, "at most 0", "tests", None, note)]


def steps(setup: Setup) -> list[Row]:
    """Compare whole steps with bare steps, and with the usual loop."""
    _, rows = measure_on(setup.device, setup.sizes, SMALL if setup.small else PLAN)
    return rows


def determinism(setup: Setup) -> list[Row]:
    """Compare steps whose results repeat with steps whose results need not."""
    ours, count = setup.ours(), 2 if setup.small else 10
    mode_before, fill_before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = False  # as on a GPU
    kinds: dict[str, Callable[[], object]] = {}
    for mode in ("warn", "default"):
        run = next_steps(ours.job("determinism", teacher="views"), count)
        kinds[mode] = lambda mode=mode, run=run: (torch.set_deterministic_debug_mode(mode), run())
    try:
        taken_s = seconds_in_turn(kinds, 2 if setup.small else 5)
    finally:
        torch.set_deterministic_debug_mode(mode_before)
        deterministic.fill_uninitialized_memory = fill_before
    step_ms = round(1000 * float(np.median(taken_s["warn"])) / count, 1)
    what = "distillation step whose results repeat / one whose results need not"
    return [ratio_row("determinism", what, taken_s["warn"] / taken_s["default"], note=f"{step_ms} ms the former")]


def loading(setup: Setup) -> list[Row]:
    """Compare the time in which the loader makes a batch with that of a step."""
    ours, rounds = setup.ours(), 3 if setup.small else 10
    job = ours.job("loading", teacher="views")
    kinds: dict[str, Callable[[], object]] = {"step": next_steps(job, 1)}
    batches, number = ours.job("load", teacher="views").batches, iter(range(10**6))
    kinds["load"] = lambda: batches.load(next(number))
    taken_s = seconds_in_turn(kinds, rounds)
    what = f"loading of a batch by {batches.threads} threads / a step, which it has to be below"
    return [ratio_row("loading", what, taken_s["load"] / taken_s["step"], "at most 0.8")]


class StoppedError(Exception):
    """Stands for a kill: nothing more is saved."""


class StopBefore:
    """The loader of a training that ends with a StoppedError before the batch of a step."""

    def __init__(self, batches: CropLoader, step: int) -> None:
        self.batches, self.step = batches, step
        self.names = batches.names

    def steps(self, first: int, end: int) -> Iterator[tuple[int, CropBatch]]:
        """Yield (step, batch) as CropLoader.steps."""
        for step, batch in self.batches.steps(first, end):
            if step == self.step:
                raise StoppedError
            yield step, batch


def repeat(setup: Setup) -> list[Row]:
    """Train three times, the third time with a stop, and compare the bytes of the networks."""
    ours = setup.ours()
    settings = {"steps": STEPS, "log_every_steps": 4, "checkpoint_every_steps": 4, "evaluate_every_steps": 0}
    digests = []
    for stopped in (False, False, True):
        with tempfile.TemporaryDirectory() as folder:
            job = ours.job("repeat", teacher="views", **settings)
            if stopped:
                with contextlib.suppress(StoppedError), Checkpointer("bench", "key", folder) as checkpointer:
                    train(job._replace(batches=StopBefore(job.batches, 6)), checkpointer)
                job = ours.job("repeat", teacher="views", **settings)
            with Checkpointer("bench", "key", folder) as checkpointer:
                train(job, checkpointer)
            digests.append(digest(job.net.state_dict()))
    what = f"different networks after {STEPS} steps, twice in one go and once with a stop and a resume"
    return [Row("repeat", what, len(set(digests)), "at most 1", "networks", None, digests[0])]


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Return a short hash of the bytes of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def frames(setup: Setup) -> list[Row]:
    """Compare the logits and classes of eight frames with those of the CPU, all in float32."""
    ours = setup.ours()
    found = ours.compute.in_float32()
    expected = found._replace(device=torch.device("cpu"))
    predictors = [TorchPredictor(seeded_student(), compute) for compute in (found, expected)]
    errors, shares = [], []
    for index in range(min(8, len(ours.streets.split))):
        image = np.array(ours.streets.split.images[index : index + 1])
        both = [predictor.logits(image).cpu() for predictor in predictors]
        errors.append(float((both[0] - both[1]).abs().max() / both[1].abs().max()))
        classes = [classes_of(logits, image.shape[1:3]) for logits in both]
        shares.append(float((classes[0] == classes[1]).float().mean()))
    of = f"{len(errors)} frames in float32, here and on the CPU"
    return [
        Row(
            "frames",
            f"largest difference between logits of {of} / largest logit",
            max(errors),
            "at most 0.0001",
            "ratio",
            None,
        ),
        Row(
            "frames-classes",
            f"share of the pixels of {of} with the same class",
            min(shares),
            "at least 0.999",
            "ratio",
            None,
        ),
    ]


def seeded_student() -> nn.Module:
    """Return a student with the same random weights each time."""
    torch.manual_seed(0)
    return build(STUDENT, CLASSES)


def teacher(setup: Setup) -> list[Row]:
    """Measure how many views a second the teacher gives logits of, alone and while they are written."""
    compute, crop_px = our_compute(setup.device), setup.sizes.crop_px
    views, batch = (4, 2) if setup.small else (64, 8)
    predictor = TorchPredictor(random_teacher(compute), compute)
    images = np.random.default_rng(0).integers(0, 256, (batch, *crop_px, 3), np.uint8)
    spec = ViewSpec("", views, crop_px, crop_px, 1, STRIDE, seed=0)
    shape = stored_shape("views", spec, CLASSES)
    on_gpu = compute.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    rates: dict[str, float] = {}
    logits_on_grid(predictor, images, shape[2:4])  # loads kernels
    with tempfile.TemporaryDirectory() as folder, LogitsWriter(Path(folder), "uint8", shape) as writer:
        for name in ("alone", "written"):
            started = time.perf_counter()
            with Overlap(active=on_gpu) as overlap:
                for _ in range(views // batch):
                    logits = logits_on_grid(predictor, images, shape[2:4])
                    if name == "written":
                        overlap.then(writer.append, logits)
            finish(compute)
            rates[name] = views / (time.perf_counter() - started)
    of = f"{views} views of {crop_px[0]}x{crop_px[1]} through {TEACHER}, {batch} at a time, {compute.precision}"
    rows = [
        Row("teacher", of, round(rates["alone"], 1), None, "views/s", None),
        Row(
            "teacher-written", "the same, stored as uint8 meanwhile", round(rates["written"], 1), None, "views/s", None
        ),
    ]
    if on_gpu:
        peak = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        rows.append(Row("teacher-memory", "memory of the GPU that it takes at most", peak, None, "GiB", None))
    return rows


def compiled(setup: Setup) -> list[Row]:
    """Compare compiled steps with others; on a CPU this takes a C++ compiler and a minute, and is left out."""
    if setup.device != "cuda":
        return []
    ours, count = setup.ours(), 10
    started = time.perf_counter()
    fast = next_steps(through_compiler(ours.job("compiled", teacher="views")), count)
    fast()
    taken_s = time.perf_counter() - started
    kinds = {"compiled": fast, "plain": next_steps(ours.job("plain", teacher="views"), count)}
    in_turn_s = seconds_in_turn(kinds, 4)
    note = f"its first {count} steps took {taken_s:.0f} s"
    what = "distillation step with distill.compile / without"
    return [ratio_row("compiled", what, in_turn_s["compiled"] / in_turn_s["plain"], note=note)]


def tiny(setup: Setup) -> list[Row]:
    """Run the stages of the tiny profile that train, two at a time, and compare the bytes of their weights."""
    digests, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("one", "two")]
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=train_tiny, args=(folder, setup.device)) for folder in folders]
        for process in processes:  # at the same time: another use of the device must not change a bit
            process.start()
        for process in processes:
            process.join(max(0.0, started + TIMEOUT_S - time.perf_counter()))
        taken_s = round(time.perf_counter() - started, 1)
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
            if process.exitcode != 0:
                raise RuntimeError(f"the tiny profile ended with exit code {process.exitcode}")
        for folder in folders:
            weights = sorted((folder / "models").rglob("*.safetensors"))
            digests.append(hashlib.sha256(b"".join(file.read_bytes() for file in weights)).hexdigest()[:16])
    what = f"prepare to finetune of the tiny profile, {RUN}, on {setup.device}"
    return [
        Row(
            "tiny",
            f"different weights after {what}, twice",
            len(set(digests)),
            "at most 1",
            "weights",
            None,
            digests[0],
        ),
        Row("tiny-time", f"{what}, two at a time, with the start of a process", taken_s, None, "s", None),
    ]


def train_tiny(folder: Path, device: str) -> None:
    """Run the stages from `prepare` to `finetune` in `folder`, in this process."""
    folder.mkdir()
    os.chdir(folder)
    params = load_params(ROOT / "profiles" / "tiny.yaml")
    params = params.model_copy(update={"compute": params.compute.model_copy(update={"device": device})})
    prepare(params.data, params.seed, Path("data") / "prepared", workers=1)
    check_teacher(params)
    teacher_logits(params, "views")
    distill(params, RUN)
    finetune(params, RUN)


# In this order, so that the most important ones are done when the time is over.
CHECKS: dict[str, Callable[[Setup], list[Row]]] = {
    "tests": gpu_tests,
    "repeat": repeat,
    "frames": frames,
    "tiny": tiny,
    "determinism": determinism,
    "teacher": teacher,
    "steps": steps,
    "loading": loading,
    "compiled": compiled,
}
