"""What a training step costs: ours against the usual loop (1), against itself without a teacher (2), and bare (3).

A few steps of each kind in turn, from frames of 1024x2048 on disk: ours in one process, the usual loop in another, with
torch's defaults. Where there is a GPU, the rows are measured on both: `1-gpu` and so on are of 768x768 crops, batch 16.
"""

from __future__ import annotations

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.our_loop import (
    FEATURE_CHANNELS,
    STUDENT,
    TEACHER,
    OurLoop,
    bare_steps,
    cpp_compiler,
    next_steps,
    our_compute,
    student_settings,
    through_compiler,
)
from benchmarks.own_process import OwnProcess
from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.streets import ON_CPU, ON_GPU, QUICK, Sizes, streets_on_disk
from benchmarks.usual_loop import WORKERS, StreetFiles, library_nets, peer_nets, usual_epochs
from segdistill.core.provenance import package_versions
from segdistill.training.batches import CropBatch, CropLoader
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import train

PEER = "segmentation-models-pytorch"


class Plan(NamedTuple):
    """How long to measure: steps of a stretch and counted rounds for each comparison."""

    usual: tuple[int, int]
    compiled: bool  # whether to wait for torch's compiler
    cached: tuple[int, int]
    whole: tuple[int, int]


FULL = Plan(usual=(3, 5), compiled=True, cached=(3, 20), whole=(5, 10))
FULL_GPU = Plan(usual=(16, 5), compiled=True, cached=(20, 10), whole=(50, 10))
TRIAL = Plan(usual=(1, 1), compiled=False, cached=(1, 2), whole=(2, 2))


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows 1, 2 and 3."""
    conditions, rows = measure_on("cpu", QUICK if quick else ON_CPU, TRIAL if quick else FULL)
    if torch.cuda.is_available():
        more, gpu_rows = measure_on("cuda", QUICK if quick else ON_GPU, TRIAL if quick else FULL_GPU)
        torch.use_deterministic_algorithms(False)  # our_compute("cuda") turned them on
        conditions["gpu"] = more | {"name": torch.cuda.get_device_name()}
        rows += gpu_rows
    return conditions, rows


def measure_on(device: str, sizes: Sizes, plan: Plan) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows on a device, cpu or cuda."""
    compute = our_compute(device)
    # The profile for a CPU, or the one for a GPU, with its intervals of curve and checkpoints.
    settings = student_settings("default" if device == "cpu" else "cityscapes")
    ours = OurLoop(streets_on_disk(sizes.frame_px, sizes.frames), sizes, compute, settings)
    suffix, targets = ("", ("4", "1.05")) if device == "cpu" else ("-gpu", ("10", "1.1"))
    usual_s, usual_rows = _usual_over_ours(ours, plan, suffix, f"at least {targets[0]}")
    cached_s, cached_rows = _cached_over_plain(ours, plan.cached, suffix)
    whole_rows = _whole_over_bare(ours, plan.whole, suffix, f"at most {targets[1]}")
    conditions = {
        "student": STUDENT,
        "teacher": TEACHER,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in sizes._asdict().items()},
        "device": str(compute.device),
        "our_precision": str(compute.dtype).removeprefix("torch."),
        "png_bytes_per_frame": ours.streets.png_bytes_per_frame,
        "usual_loop": f"{WORKERS} loader workers, float32, NCHW, a process of its own",
        "usual_decoding_s_per_batch": round(_decoding_s(ours), 4),
        "peer": package_versions(PEER) or f"{PEER} is not installed: rows 1-smp are left out",
        "seconds_per_step": usual_s | cached_s,
    }
    return conditions, usual_rows + cached_rows + whole_rows


def _usual_over_ours(ours: OurLoop, plan: Plan, suffix: str, target: str) -> tuple[dict, list[Row]]:
    """Return the median seconds of each kind of step, and the rows 1, 1-compiled, 1-smp and 2-live."""
    steps, rounds = plan.usual
    # The usual loop on the networks of the library, and on those of the peer where it is installed.
    given = ours.streets.png_pairs, ours.sizes, steps, ours.compute.device
    usual = {"usual": OwnProcess(usual_epochs, library_nets, *given)}
    if importlib.util.find_spec("segmentation_models_pytorch"):
        usual["usual, peer's nets"] = OwnProcess(usual_epochs, peer_nets, *given)
    kinds: dict[str, Callable[[], None]] = {**usual, "ours": next_steps(ours.job("ours", teacher="views"), steps)}
    if ours.compute.dtype != torch.float32:
        in_float32 = OurLoop(ours.streets, ours.sizes, ours.compute.in_float32(), ours.settings)
        kinds["ours, float32"] = next_steps(in_float32.job("float32", teacher="views"), steps)
    if plan.compiled and (ours.compute.device.type == "cuda" or cpp_compiler()):
        kinds["ours, compiled"] = next_steps(through_compiler(ours.job("compiled", teacher="views")), steps)
    kinds["ours, no teacher"] = next_steps(ours.job("plain"), steps)
    kinds["ours, live teacher"] = next_steps(ours.job("live", teacher="online"), steps)
    taken_s = seconds_in_turn(kinds, rounds)
    for loop in usual.values():
        loop.end()
    (height, width), frame_px = ours.sizes.crop_px, ours.sizes.frame_px
    of = f"{height}x{width} crops, batch {ours.sizes.batch}, from {frame_px[0]}x{frame_px[1]} frames on disk"
    what = f"distillation step, MobileNetV2 from ResNet-101, both DeepLabV3+, {of}: usual loop / ours"
    against_usual = ratio_row(f"1{suffix}", what, taken_s["usual"] / taken_s["ours"], target)
    live = taken_s["ours, live teacher"] / taken_s["ours, no teacher"]
    if against_usual.met is False:
        limit = (
            f"ours is the student's own arithmetic; the teacher's pass alone would be {np.median(live) - 1:.2f} of it"
        )
        against_usual = against_usual._replace(note=limit)
    rows = [against_usual]
    if "ours, compiled" in kinds:
        what = "the same, ours with distill.compile; its first steps, a minute or two, come on top (w-compile-start)"
        rows.append(ratio_row(f"1-compiled{suffix}", what, taken_s["usual"] / taken_s["ours, compiled"], target))
    if "ours, float32" in kinds:
        what = "the same, ours in float32 as the usual loop is"
        rows.append(ratio_row(f"1-float32{suffix}", what, taken_s["usual"] / taken_s["ours, float32"]))
    if "usual, peer's nets" in kinds:
        what = f"the same, the usual loop on the nets of {PEER} / ours"
        rows.append(ratio_row(f"1-smp{suffix}", what, taken_s["usual, peer's nets"] / taken_s["ours"]))
    rows.append(ratio_row(f"2-live{suffix}", "distillation step with the live teacher / vanilla step, ours both", live))
    return {name: round(float(np.median(taken)) / steps, 4) for name, taken in taken_s.items()}, rows


def _cached_over_plain(ours: OurLoop, plan: tuple[int, int], suffix: str) -> tuple[dict, list[Row]]:
    """Return the median seconds of a step with KL at full resolution, and the rows 2, 2-full and 2-features."""
    steps, rounds = plan
    jobs = {
        "plain": ours.job("plain"),
        "cached": ours.job("cached", teacher="views"),
        "full": ours.job("full", teacher="views", kl_resolution="full"),
        "features": ours.job("features", teacher="views", feature_weight=1.0),
    }
    taken_s = seconds_in_turn({name: next_steps(job, steps) for name, job in jobs.items()}, rounds)
    what = "distillation step from cached logits / vanilla training step, ours both"
    return {"ours, kl_resolution full": round(float(np.median(taken_s["full"])) / steps, 4)}, [
        ratio_row(f"2{suffix}", what, taken_s["cached"] / taken_s["plain"], "at most 1.05"),
        ratio_row(f"2-full{suffix}", f"{what}, KL at full resolution", taken_s["full"] / taken_s["plain"]),
        ratio_row(
            f"2-features{suffix}",
            f"step that learns from {FEATURE_CHANNELS} cached feature channels as well / step from cached logits",
            taken_s["features"] / taken_s["cached"],
        ),
    ]


class Alternating:
    """The loader of a training that calls `other` before each `every` steps, and times both in seconds.

    A stretch of the training includes everything the training does. Its first batch loads while nothing else runs, so
    it costs slightly more than in a training that is not interrupted.
    """

    def __init__(self, batches: CropLoader, every: int, other: Callable[[], None]) -> None:
        self.batches, self.every, self.other = batches, every, other
        self.training_s: list[float] = []
        self.other_s: list[float] = []

    def steps(self, first: int, end: int) -> Iterator[tuple[int, CropBatch]]:
        """Yield (step, batch) as CropLoader.steps; call `other` first, between the stretches and last."""
        self._call_other()
        for start in range(first, end, self.every):
            started = time.perf_counter()
            yield from self.batches.steps(start, min(start + self.every, end))
            self.training_s.append(time.perf_counter() - started)
            self._call_other()

    def names(self, step: int) -> list[str]:
        """Return the names of the frames in batch number `step`."""
        return self.batches.names(step)

    def _call_other(self) -> None:
        gc.collect()
        started = time.perf_counter()
        self.other()
        self.other_s.append(time.perf_counter() - started)


class TimedCheckpointer(Checkpointer):
    """A checkpointer that records the seconds of each checkpoint."""

    def __init__(self, *given: object) -> None:
        super().__init__(*given)
        self.saves_s: list[float] = []

    def save(self, state: dict) -> None:
        started = time.perf_counter()
        super().save(state)
        self.saves_s.append(time.perf_counter() - started)


def _whole_over_bare(ours: OurLoop, plan: tuple[int, int], suffix: str, target: str) -> list[Row]:
    """Return the rows 3 and 3-checkpoint: `train` itself, stretch by stretch, each between two stretches of bare steps.

    Every stretch saves one checkpoint; its seconds are then charged at the profile's interval.
    """
    steps, rounds = plan
    log_every, save_every = ours.settings.log_every_steps, ours.settings.checkpoint_every_steps
    job = ours.job(
        "whole",
        steps=steps * (rounds + 1),
        log_every_steps=min(log_every, steps),
        checkpoint_every_steps=steps,
        evaluate_every_steps=0,
    )
    turns = Alternating(job.batches, steps, bare_steps(ours.job("bare"), steps))
    with (
        tempfile.TemporaryDirectory(dir=ours.streets.folder) as folder,
        TimedCheckpointer("bench", "key", folder) as checkpointer,
    ):
        train(job._replace(batches=turns), checkpointer)
    bare_s = np.asarray(turns.other_s)
    between_s = (bare_s[:-1] + bare_s[1:])[1:] / 2  # the first stretch warms up
    saves_s = np.asarray(checkpointer.saves_s)[1:]
    charged_s = np.median(saves_s) * steps / save_every
    whole = (np.asarray(turns.training_s)[1:] - saves_s + charged_s) / between_s
    what = f"whole training step (loader, loss, curve, progress, a checkpoint every {save_every} steps) / bare step"
    low, high = (round(1000 * float(np.quantile(saves_s, q)), 1) for q in (0.1, 0.9))
    median_ms = round(1000 * float(np.median(saves_s)), 1)
    return [
        ratio_row(f"3{suffix}", what, whole, target),
        Row(f"3-checkpoint{suffix}", "one checkpoint, synced to disk", median_ms, None, "ms", (low, high)),
    ]


def _decoding_s(ours: OurLoop) -> float:
    """Return the seconds in which one process makes a batch from PNG files, the median of five."""
    files, taken_s = StreetFiles(ours.streets.png_pairs, ours.sizes.crop_px, ours.sizes.batch), []
    for _ in range(5):
        started = time.perf_counter()
        for index in range(len(files)):
            files[index]
        taken_s.append(time.perf_counter() - started)
    return float(np.median(taken_s))
