"""What a training step costs: plain, from cached views, and with the live teacher; in our loop and bare.

Everything is timed in one process, a few steps of each kind in turn: one student, one set of crops and batches. Values
are random, because time does not depend on them; frames lie on disk as `prepare` writes them, at full 1024x2048 pixels.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from segdistill.compute import Compute
from segdistill.crops import CropBatches
from segdistill.dataset import Split
from segdistill.losses import cross_entropy
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.params import Params
from segdistill.params_file import load_params
from segdistill.rng import Batches, view_origins
from segdistill.scratch import Scratch
from segdistill.teacher_cache import Teaching
from segdistill.train_loop import Distillation, Job, sgd, train, update

STUDENT, TEACHER = "deeplabv3plus_mobilenet", "deeplabv3plus_resnet101"
FRAME_PX, CROP_PX, BATCH, CLASSES, STRIDE = (1024, 2048), (256, 256), 4, 19, 4
FRAMES, VIEWS = 8, 2
TURN_STEPS = 3  # steps of one kind before the next kind has its turn
WHOLE_TURNS = 8  # turns of bare steps before each whole training


class Bench:
    """The arrays on disk, and the jobs that train on them."""

    def __init__(self, folder: Path, compute: Compute, params: Params) -> None:
        self.folder, self.compute = folder, compute
        self.settings = params.distill.model_copy(update={"batch_size": BATCH, "steps": 10**6, "jitter": 0.0})
        rng = np.random.default_rng(0)
        self.split = Split(
            self._array("images", rng.integers(0, 256, (FRAMES, *FRAME_PX, 3), np.uint8)),
            self._array("labels", rng.integers(0, CLASSES, (FRAMES, *FRAME_PX), np.uint8)),
            tuple(map(str, range(FRAMES))),
        )
        grid = (CROP_PX[0] // STRIDE, CROP_PX[1] // STRIDE)
        self.logits = self._array("logits", rng.normal(size=(FRAMES, VIEWS, *grid, CLASSES)).astype(np.float16))
        self.origins = view_origins(0, FRAMES, VIEWS, FRAME_PX, CROP_PX, STRIDE)

    def _array(self, name: str, values: np.ndarray) -> np.ndarray:
        np.save(self.folder / f"{name}.npy", values)
        return np.load(self.folder / f"{name}.npy", mmap_mode="r")

    def job(self, name: str, distillation: Distillation | None = None, cached: bool = False, **settings) -> Job:
        """A training of a fresh student; `settings` change those of params."""
        torch.manual_seed(0)
        facts = {"stride": STRIDE, "crop_px": CROP_PX}
        reader = SimpleNamespace(kind="views", facts=facts, logits=self.logits)
        reader.cut = lambda plan, origins: Teaching.cut(reader, plan, origins)
        batches = Batches(0, name, FRAMES, VIEWS, BATCH, flip_probability=0.5, jitter=0.0)
        crops = CropBatches(self.split, batches, self.origins, CROP_PX, reader if cached else None)
        net = self.compute.place(build(STUDENT, CLASSES)).train()
        return Job(name, net, crops, self.settings.model_copy(update=settings), 0.01, self.compute, distillation)


def stepper(job: Job) -> Callable[[], None]:
    """A call that takes the next TURN_STEPS steps of `job`, loading included."""
    optimizer, batches = sgd(job.net, job.settings), job.batches.steps(0, 10**6)

    def step() -> None:
        for _ in range(TURN_STEPS):
            update(job, optimizer, *next(batches))

    return step


def bare(job: Job) -> Callable[[], None]:
    """Forward, backward and optimizer on one batch that is there already: the floor of any loop."""
    optimizer, batch = sgd(job.net, job.settings), job.batches.load(0)
    inputs, targets = batch.inputs(job.compute.device), batch.targets(job.compute.device)

    def step() -> None:
        for _ in range(TURN_STEPS):
            with job.compute.autocast():
                logits = job.net(inputs)
            cross_entropy(upsample(logits.float(), CROP_PX), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def whole_over_bare(bench: Bench, bare_steps: Callable[[], None], steps: int = 50) -> float:
    """A step of `train` itself, with loader, curve, progress and a checkpoint every 50 steps, over a bare one."""
    job = bench.job("whole", steps=steps, log_every_steps=10, checkpoint_every_steps=50, evaluate_every_steps=0)
    started = time.perf_counter()
    for _ in range(WHOLE_TURNS):
        bare_steps()
    bare_s = (time.perf_counter() - started) / (WHOLE_TURNS * TURN_STEPS)
    with Scratch("whole", "bench", bench.folder / "scratch") as scratch:
        started = time.perf_counter()
        train(job, scratch)
        whole_s = (time.perf_counter() - started) / steps
        scratch.clear()
    return whole_s / bare_s


def measure(compute: Compute, rounds: int) -> tuple[dict, list[dict]]:
    """Conditions and rows: each row a median of per-round ratios, its spread their 10th and 90th percentile."""
    params = load_params(Path(__file__).parent.parent / "profiles" / "default.yaml")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), compute, params)
        kl = Distillation(0.3, "kl", 1.0, "stride")
        live = kl._replace(live_teacher=compute.place(build(TEACHER, CLASSES)).eval())
        kinds = {
            "bare": bare(bench.job("bare")),
            "plain": stepper(bench.job("plain")),
            "cached": stepper(bench.job("cached", kl, cached=True)),
            "live": stepper(bench.job("live", live)),
        }
        taken_s = _in_turn(kinds, rounds)
        whole = np.array([whole_over_bare(bench, kinds["bare"]) for _ in range(3)])
    rows = [
        _row(
            "2", "distillation step from cached views / plain training step", taken_s["cached"] / taken_s["plain"], 1.05
        ),
        _row(
            "2-live",
            "distillation step with the live teacher / plain training step",
            taken_s["live"] / taken_s["plain"],
        ),
        _row("3", "whole training step with checkpoints and curve / bare step", whole, 1.05),
    ]
    sizes = {"crop_px": list(CROP_PX), "batch": BATCH, "frame_px": list(FRAME_PX), "rounds": rounds}
    return {"student": STUDENT, "teacher": TEACHER, **sizes, "plain_step_s": float(np.median(taken_s["plain"]))}, rows


def _in_turn(kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, np.ndarray]:
    taken_s = {kind: np.empty(rounds) for kind in kinds}
    for number in range(-1, rounds):  # the first round warms up
        for kind, steps in kinds.items():
            started = time.perf_counter()
            steps()
            if number >= 0:
                taken_s[kind][number] = (time.perf_counter() - started) / TURN_STEPS
    return taken_s


def _row(row: str, what: str, ratios: np.ndarray, target: float | None = None) -> dict:
    spread = [round(float(np.quantile(ratios, q)), 3) for q in (0.1, 0.9)]
    return {
        "row": row,
        "what": what,
        "value": round(float(np.median(ratios)), 3),
        "target": target,
        "unit": "ratio",
        "spread": spread,
    }
