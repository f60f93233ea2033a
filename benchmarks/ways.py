"""Ways to make a training step cheaper, each against the library's plain step: those that it uses, and others.

The teacher's forward pass is measured in another form, too, because the pass over the data costs that much.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.our_loop import (
    STUDENT,
    TEACHER,
    OurLoop,
    cpp_compiler,
    finish,
    next_steps,
    our_compute,
    random_teacher,
    student_settings,
    through_compiler,
)
from benchmarks.own_process import OwnProcess
from benchmarks.rows import Row, ratio_row, seconds_in_turn
from benchmarks.streets import ON_CPU, QUICK, Sizes, streets_on_disk
from benchmarks.usual_loop import AsPublished
from segdistill.nets.device import keep_freed_memory, resolve_device
from segdistill.nets.registry import build
from segdistill.prepare.cityscapes import CLASSES
from segdistill.training.loop import Job, update
from segdistill.training.optimizers import make_optimizer

OPTIMIZER_STEPS = 5  # of a stretch: one alone is too short to time


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows w-...; a trial leaves out torch.compile, which takes a minute to start."""
    sizes = QUICK if quick else ON_CPU
    compute = our_compute()
    ours = OurLoop(streets_on_disk(sizes.frame_px, sizes.frames), sizes, compute, student_settings())
    steps, rounds = (1, 1) if quick else (2, 9)
    rows = _step_rows(ours, steps, rounds) + _optimizer_rows(ours, rounds) + _teacher_rows(ours, rounds)
    rows += _memory_rows(sizes, rounds)
    compiler = cpp_compiler()
    if compiler and not quick:
        rows += _compile_rows(ours, steps, rounds)
    conditions = {
        "student": STUDENT,
        "teacher": TEACHER,
        "crop_px": list(sizes.crop_px),
        "batch": sizes.batch,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "compiler": compiler or "none: torch.compile is left out",
    }
    return conditions, rows


class Nchw(nn.Module):
    """A network with weights and inputs in NCHW memory."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.contiguous_format)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BChw."""
        return self.net(images_BCHW.contiguous())


class WrittenOut(AsPublished):
    """The public code's forward pass up to the logits at stride 4: resize, join, convolve all channels."""

    forward = AsPublished.at_stride_4


def _step_rows(ours: OurLoop, steps: int, rounds: int) -> list[Row]:
    """Return the rows of what changes a whole step, measured in turn with it."""
    other = torch.float32 if ours.compute.dtype == torch.bfloat16 else torch.bfloat16
    jobs = {"plain": ours.job("plain"), "cached": ours.job("cached", teacher="views")}
    nchw, head, other_dtype = ours.job("nchw"), ours.job("head"), ours.job("dtype")
    jobs |= {
        "nchw": nchw._replace(net=Nchw(nchw.net).train()),
        "head": head._replace(net=WrittenOut(head.net).train()),
        "dtype": other_dtype._replace(compute=ours.compute._replace(dtype=other)),
        "full": ours.job("full", teacher="views", kl_resolution="full"),
        "jitter": ours.job("jitter", jitter=0.2),
    }
    kinds = {name: next_steps(job, steps) for name, job in jobs.items()}
    kinds["in line"] = _steps_in_line(ours.job("in line"), steps)
    taken_s = seconds_in_turn(kinds, rounds)
    dtypes = " / ".join(str(dtype).removeprefix("torch.") for dtype in (other, ours.compute.dtype))
    return [
        ratio_row(row, f"training step, {what}", taken_s[way] / taken_s[base])
        for row, way, base, what in (
            ("w-nchw", "nchw", "plain", "NCHW / channels last"),
            ("w-head", "head", "plain", "decoder as published / as the library computes it"),
            ("w-precision", "dtype", "plain", f"{dtypes} (autocast)"),
            ("w-kl-full", "full", "cached", "KL at full resolution / on the stored grid"),
            ("w-jitter", "jitter", "plain", "colour jitter 0.2 / none"),
            ("w-loader", "in line", "plain", "batches cut between the steps / by a thread, one step ahead"),
        )
    ]


def _steps_in_line(job: Job, steps: int) -> Callable[[], None]:
    """Return a call as next_steps does, without the loader's thread."""
    optimizer, numbers = make_optimizer(job.net, job.settings), itertools.count()

    def train_on() -> None:
        for _ in range(steps):
            step = next(numbers)
            update(job, optimizer, step, job.batches.load(step))
        finish(job.compute)

    return train_on


def _optimizer_rows(ours: OurLoop, rounds: int) -> list[Row]:
    """Return the rows of torch's forms of SGD against the library's, on one set of gradients."""
    lr = 1e-6
    torch_settings = {"lr": lr, "momentum": ours.settings.momentum, "weight_decay": ours.settings.weight_decay}

    def net() -> nn.Module:
        made = ours.job("optimizer").net
        for parameter in made.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        return made

    def several(step: Callable[[], None]) -> Callable[[], None]:
        def update_weights() -> None:
            for _ in range(OPTIMIZER_STEPS):
                step()
            finish(ours.compute)

        return update_weights

    def torch_sgd(**form: bool) -> Callable[[], None]:
        return several(torch.optim.SGD(net().parameters(), **torch_settings, **form).step)

    own = make_optimizer(net(), ours.settings)
    kinds = {
        "ours": several(lambda: own.step(lr)),
        "fused": torch_sgd(fused=True),
        "foreach": torch_sgd(foreach=True),
        "plain": torch_sgd(foreach=False),
    }
    taken_s = seconds_in_turn(kinds, 3 * rounds)
    return [
        ratio_row(f"w-sgd-{name}", f"optimizer step, torch's {name} SGD / ours", taken_s[name] / taken_s["ours"])
        for name in ("fused", "foreach", "plain")
    ]


def _teacher_rows(ours: OurLoop, rounds: int) -> list[Row]:
    """Return the row of the teacher's forward pass, eager against frozen for inference with batch norm folded."""
    inputs, teacher = ours.job("inputs").batches.load(0).inputs(ours.compute.device), random_teacher(ours.compute)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates tracing
        frozen = torch.jit.optimize_for_inference(torch.jit.trace(teacher, inputs, check_trace=False))
        for _ in range(2):  # torch optimises a frozen network in its first calls
            frozen(inputs)
        taken_s = seconds_in_turn({"eager": lambda: teacher(inputs), "frozen": lambda: frozen(inputs)}, rounds)
    what = "teacher's forward pass in float32, traced and frozen with batch norm folded / eager"
    return [ratio_row("w-teacher-frozen", what, taken_s["frozen"] / taken_s["eager"])]


def _memory_rows(sizes: Sizes, rounds: int) -> list[Row]:
    """Return the rows of returning freed memory to the kernel against keeping it, each in a process of its own."""
    works = {
        "w-memory-step": ("training step on a resident batch", training_step, (sizes.batch, 3, *sizes.crop_px)),
        "w-memory-frame": ("forward pass over a frame", frame_pass, (1, 3, *sizes.frame_px)),
    }
    rows = []
    for row, (what, make, shape) in works.items():
        kinds = {kept: OwnProcess(make, shape, kept) for kept in (False, True)}
        taken_s = seconds_in_turn(kinds, rounds)
        for process in kinds.values():
            process.end()
        of = f"{what}, {shape[0]} of {shape[2]}x{shape[3]}, float32: freed memory given back / kept"
        rows.append(ratio_row(row, of, taken_s[False] / taken_s[True]))
    return rows


def training_step(shape: tuple[int, ...], kept: bool) -> Callable[[], None]:
    """Return a call: forward and backward of the student over random pixels (B, 3, H, W); `kept` keeps freed memory."""
    net, pixels = _student_and_pixels(shape, kept)
    return lambda: net.train()(pixels).square().mean().backward()


def frame_pass(shape: tuple[int, ...], kept: bool) -> Callable[[], None]:
    """Return a call: the student's forward over random pixels (B, 3, H, W); `kept` keeps freed memory."""
    net, pixels = _student_and_pixels(shape, kept)
    net.eval()

    @torch.inference_mode()
    def forward() -> None:
        net(pixels)

    return forward


def _student_and_pixels(shape: tuple[int, ...], kept: bool) -> tuple[nn.Module, Tensor]:
    compute = resolve_device("cpu", "float32", 0)
    if kept:
        keep_freed_memory()
    return compute.place(build(STUDENT, CLASSES)), torch.rand(shape).to(memory_format=torch.channels_last)


def _compile_rows(ours: OurLoop, steps: int, rounds: int) -> list[Row]:
    """Return the rows of `compile: true` from an empty cache: what it saves, what its start costs, when it has paid."""
    with tempfile.TemporaryDirectory() as cache:
        first_s, again_s = _first_step_s(cache), _first_step_s(cache)
    kinds = {
        "compiled": next_steps(through_compiler(ours.job("compiled")), steps),
        "plain": next_steps(ours.job("plain"), steps),
    }
    taken_s = seconds_in_turn(kinds, rounds)
    saved_s = float(np.median(taken_s["plain"] - taken_s["compiled"])) / steps
    rows = [
        ratio_row("w-compile", "training step, student compiled / eager", taken_s["compiled"] / taken_s["plain"]),
        Row("w-compile-start", "first step of a compiled student", round(first_s, 1), None, "s", None),
        Row("w-compile-again", "the same, where torch has compiled it before", round(again_s, 1), None, "s", None),
    ]
    if saved_s > 0:
        what = "steps of a run after which compiling has paid"
        rows.append(Row("w-compile-pays", what, round(first_s / saved_s), None, "steps", None))
        rows.append(Row("w-compile-pays-again", f"{what} again", round(again_s / saved_s), None, "steps", None))
    return rows


def _first_step_s(cache: str) -> float:
    """Return the seconds of a compiled student's first step in a fresh process; `cache` is torch's compiler cache."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_start"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout)
