"""Seconds from the start of a stage's process to its first useful work, over those of a bare `import torch` (12).

Each stage starts as `dvc repro` starts it, in a small workspace that has what it reads, and is killed at the call that
begins its work (first_work.py). The page cache is warm. Every process is timed to its end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from benchmarks.rows import Row, ratio_row, seconds_in_turn

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 7
TORCH = "import torch"
RUN, STUDENT = ("--run", "taught"), "deeplabv3plus_mobilenet"
DONE = 77  # exit code of a bare import, so that no failure passes for it

# Stage, its arguments, and the call that begins its work.
STAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "prepare": ((), "segdistill.prepare.synthetic.source:SyntheticFrames.read"),
    "teacher-check": ((), "segdistill.training.loop:update"),
    "teacher-logits": (("--kind", "views"), "segdistill.teacher_logits.build:logits_on_grid"),
    "distill": (RUN, "segdistill.training.loop:update"),
    "steplr-finetune": (RUN, "segdistill.training.loop:update"),
    "export-onnx": (RUN, "segdistill.export.run:write_float32"),
    "benchmark": ((), "segdistill.latency.run:_onnx_files"),
    "report": ((), "segdistill.results.summary:summarise"),
}
WITHOUT_TORCH = ("prepare", "report")
READ_BY_OTHERS = ("prepare", "teacher-check", "teacher-logits", "distill", "steplr-finetune")


def small_params() -> dict:
    """Return profiles/default.yaml with a few small frames: start-up does not depend on the steps that follow."""
    params = yaml.safe_load((ROOT / "profiles" / "default.yaml").read_text(encoding="utf-8"))
    params["data"] |= {"size_px": [32, 64], "synthetic": {"train_frames": 10, "val_frames": 2}}
    for section in ("teacher", "distill"):
        params[section] |= {"steps": 1, "batch_size": 2, "crop_px": [32, 32], "evaluate_every_steps": 0}
    # A teacher of our own networks: importing timm takes seconds.
    params["teacher"] |= {"arch": "deeplabv3plus_resnet50", "backbone": None, "init": "random", "warmup_steps": 0}
    params["seeds"] = []
    params["teacher_logits"] |= {"views": 1, "dtype": "float32"}  # after one step logits are too large for float16
    params["finetune"]["steps"] = 1
    params["runs"] = {
        "taught": {"student": STUDENT, "alpha": 0.3, "lr": 0.01, "teacher": "views"},
        "vanilla": {"student": STUDENT, "alpha": 0.0, "lr": 0.01, "teacher": "none"},
    }
    return params


class Workspace:
    """A folder where every stage finds what it reads."""

    def __init__(self, folder: Path) -> None:
        self.folder, hooks = folder / "workspace", folder / "hooks"
        for made in (self.folder, hooks):
            made.mkdir()
        shutil.copyfile(Path(__file__).with_name("first_work.py"), hooks / "sitecustomize.py")
        (self.folder / "params.yaml").write_text(yaml.safe_dump(small_params(), sort_keys=False), encoding="utf-8")
        self.environment = os.environ | {"PYTHONPATH": f"{hooks}:{ROOT / 'src'}", "MLFLOW_DISABLE_TELEMETRY": "true"}
        # Keep bytecode, as Python does by default; every timed command has run before.
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for stage in READ_BY_OTHERS:
            self._run(self._command(stage), {}, expected=(0,))
        # benchmark reads the weights of every run; any weights do for that.
        runs = self.folder / "models" / "runs"
        shutil.copytree(runs / "taught", runs / "vanilla")

    def started(self, stage: str) -> Callable[[], None]:
        """Return a call that starts `stage` and returns when it came to its first useful work."""
        command, first_work = self._command(stage), STAGES[stage][1]
        # prepare may read its first frame in a worker process, which then ends its parent.
        return lambda: self._run(command, {"FIRST_WORK": first_work}, expected=(-signal.SIGKILL,))

    def bare(self, statement: str) -> Callable[[], None]:
        """Return a call that starts Python, runs `statement` and exits at once."""
        command = [sys.executable, "-c", f"{statement}; import os; os._exit({DONE})"]
        return lambda: self._run(command, {}, expected=(DONE,))

    def _command(self, stage: str) -> list[str]:
        return [sys.executable, str(ROOT / "stages" / f"{stage.replace('-', '_')}.py"), *STAGES[stage][0]]

    def _run(self, command: list[str], extra: dict[str, str], expected: tuple[int, ...]) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment | extra,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if done.returncode not in expected:
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the conditions and the rows: each stage's seconds over those of `import torch`, round by round."""
    rounds = 1 if quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        kinds = {TORCH: workspace.bare(TORCH)} | {stage: workspace.started(stage) for stage in STAGES}
        taken_s = seconds_in_turn(kinds, rounds, warmup=0 if quick else 1)
    ratios = {stage: taken_s[stage] / taken_s[TORCH] for stage in STAGES}
    slowest = max((stage for stage in STAGES if stage not in WITHOUT_TORCH), key=lambda name: np.median(ratios[name]))
    rows = [
        ratio_row(
            "12",
            f"start-up of a torch stage, the slowest ({slowest}) / bare import torch",
            ratios[slowest],
            "at most 1.5",
        )
    ]
    rows += [ratio_row(f"12-{stage}", f"start-up of {stage} / bare import torch", ratios[stage]) for stage in STAGES]
    slower = max(WITHOUT_TORCH, key=lambda name: np.median(taken_s[name]))
    seconds = ratio_row("12-s", f"start-up of prepare and report, the slower ({slower})", taken_s[slower], "at most 1")
    rows.append(seconds._replace(unit="s"))
    conditions = {f"{name}_s": round(float(np.median(taken)), 3) for name, taken in taken_s.items()}
    return {"rounds": rounds, "page_cache": "warm", **conditions}, rows
