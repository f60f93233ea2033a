"""Rows 9: `dvc repro` with nothing to do and `dvc status`, beside as many stages that are each as small as can be.

No run is trained: the outs are a few bytes under the right names. DVC looks at size and time of a file that it has
hashed before, so what is in them does not matter.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from benchmarks.rows import Row, ratio_row, seconds_in_turn
from segdistill.core.files import write_text

ROOT = Path(__file__).resolve().parent.parent
FOLDERS_OF_USERS = ("checkpoints/README.md", "data/raw/README.md", "initial_weights/README.md")
COPIED = ("src", "stages", "dvc.yaml", ".gitignore", ".dvcignore", *FOLDERS_OF_USERS)
FIRST_RUN = "run-000"
WHAT = {"repro": "dvc repro with nothing to do", "status": "dvc status"}
ROUNDS_OF_RUNS = {8: 5, 32: 3, 128: 2}
AGGREGATES = ("benchmark", "report")  # they depend on the folder of all runs
FILES_OF_FOLDER = 8


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Seconds of each command for each number of runs, and their ratio to a trivial pipeline, both in turn."""
    rows, stages_of_runs = [], {}
    for runs, rounds in {8: 1}.items() if quick else ROUNDS_OF_RUNS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folders = {
                "ours": _ours(Path(scratch) / "ours", runs),
                "trivial": _trivial(Path(scratch) / "trivial", runs),
            }
            for folder in folders.values():
                _up_to_date(folder, "status")  # hashes every file, once
            for command in WHAT:
                kinds = {kind: partial(_up_to_date, folder, command) for kind, folder in folders.items()}
                rows += _rows(command, runs, seconds_in_turn(kinds, rounds, warmup=0))
            stages = _lock(folders["ours"])["stages"].values()
            stages_of_runs[runs] = len(stages)
    deps = round(sum(len(stage["deps"]) for stage in stages) / len(stages))
    conditions = {"stages_of_runs": stages_of_runs, "rounds_of_runs": ROUNDS_OF_RUNS, "deps_per_stage": deps}
    reason = (
        f"our stages have {deps} deps each, trivial ones one; DVC looks up all, and reads params.yaml for each stage"
    )
    return conditions, [row if row.met in (None, True) else row._replace(note=reason) for row in rows]


def _rows(command: str, runs: int, taken_s: dict[str, np.ndarray]) -> list[Row]:
    """The seconds of `command`, and the ratio."""
    low, high = (round(float(np.quantile(taken_s["ours"], q)), 2) for q in (0.1, 0.9))
    name, what = f"9-{command}-{runs}", f"{WHAT[command]}, {runs} runs"
    return [
        Row(name, what, round(float(np.median(taken_s["ours"])), 2), None, "s", (low, high)),
        ratio_row(
            f"{name}-ratio", f"{what} / as many trivial stages", taken_s["ours"] / taken_s["trivial"], "at most 1"
        ),
    ]


def _up_to_date(folder: Path, command: str) -> None:
    told = _dvc(folder, command)
    if "up to date" not in told:
        raise RuntimeError(f"{folder}: dvc {command} found something to do:\n{told}")


def _dvc(folder: Path, *command: str) -> str:
    """Standard output of one dvc command in `folder`, whose caches are its own."""
    own = {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(folder.with_name(f"{folder.name}_site_cache"))}
    called = [sys.executable, "-m", "dvc", *command]
    told = subprocess.run(called, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    if told.returncode:
        raise RuntimeError(f"{folder}: dvc {' '.join(command)}:\n{told.stderr}")
    return told.stdout


def _ours(folder: Path, runs: int) -> Path:
    """This repository's pipeline with `runs` runs, all of them done."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    run = {
        "student": "deeplabv3plus_mobilenet",
        "alpha": 0.3,
        "lr": 0.01,
        "teacher": params["teacher_logits"]["kinds"][0],
    }
    return _finished(folder, runs, params, run)


def _trivial(folder: Path, runs: int) -> Path:
    """As many stages in the same groups, each with one small dep, one out and no params."""
    real = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {}
    for name, stage in real.items():
        key = "${key}" if stage.get("foreach") == "${runs}" else "${item}" if "foreach" in stage else ""
        body = {"cmd": "true", "deps": ["dep.txt"], "outs": [f"outs/{name}/{key or 'only'}.txt"]}
        stages[name] = {"foreach": stage["foreach"], "do": body} if key else body
    write_text(folder / "dvc.yaml", yaml.safe_dump({"stages": stages}, sort_keys=False))
    write_text(folder / "dep.txt", "dep\n")
    kinds = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["teacher_logits"]["kinds"]
    return _finished(folder, runs, {"teacher_logits": {"kinds": kinds}}, {"alpha": 0.3})


def _finished(folder: Path, runs: int, params: dict, run: dict) -> Path:
    """Make `folder` a repository in which every stage of `runs` equal runs is up to date.

    DVC takes in the first run only; as the others have the same bytes, their entries in dvc.lock are copies of its own.
    """
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    _dvc(folder, "init")
    write_text(folder / "params.yaml", yaml.safe_dump(params | {"runs": {FIRST_RUN: run}}, sort_keys=False))
    _write_outs(folder, (FIRST_RUN,), params["teacher_logits"]["kinds"])
    _dvc(folder, "commit", "--force", "--quiet")
    names = [f"run-{number:03d}" for number in range(runs)]
    write_text(folder / "params.yaml", yaml.safe_dump(params | {"runs": dict.fromkeys(names, run)}, sort_keys=False))
    _write_outs(folder, names[1:], params["teacher_logits"]["kinds"])
    stages = {}
    for stage, entry in _lock(folder)["stages"].items():
        of_runs = names if stage.endswith(FIRST_RUN) else [FIRST_RUN]
        text = yaml.safe_dump({stage: entry}, sort_keys=False)
        for name in of_runs:
            stages |= yaml.safe_load(text.replace(FIRST_RUN, name))
    write_text(folder / "dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))
    _dvc(folder, "commit", "--force", "--quiet", *AGGREGATES)
    return folder


def _lock(folder: Path) -> dict:
    return yaml.load((folder / "dvc.lock").read_text(encoding="utf-8"), yaml.CSafeLoader)


def _write_outs(folder: Path, runs: Iterable[str], kinds: list[str]) -> None:
    """Small files for all outs of dvc.yaml: those of the stages of `runs`, and those that are there once."""
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values():
        body = stage.get("do", stage)
        outs = [out for section in ("outs", "metrics", "plots") for out in body.get(section, ())]
        for out in (next(iter(out)) if isinstance(out, dict) else out for out in outs):
            for name in runs if "${key}" in out else kinds:
                _write_out(folder / out.replace("${key}", name).replace("${item}", name))


def _write_out(path: Path) -> None:
    """A small file, or a folder of some where the name has no suffix."""
    if path.suffix:
        names = [path]
    else:
        names = [path / f"{number}.bin" for number in range(FILES_OF_FOLDER)] + [path / "val_classes.npz"]
    for name in names:
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(path.suffix or path.name, encoding="utf-8")
