"""Time of `dvc repro` with nothing to do and of `dvc status`, over that of as many trivial stages (9).

    python -m benchmarks.dvc_cost --profile status --runs 32   # where the seconds of one command go

Nothing is trained: the outs are a few bytes under the right names. DVC compares size and time of files that it has
hashed before, so their content does not matter.
"""

from __future__ import annotations

import argparse
import os
import pstats
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
TARGET = "at most 1.5"
# What DVC spends its time on, each with the function that does it: end of the file's path, name.
PARTS_OF_DVC = {
    "parse params.yaml once per stage and look up its keys": ("dvc/dependency/param.py", "read_param_file"),
    "load dvc.yaml and dvc.lock": ("dvc/repo/index.py", "from_file"),
    "look up and hash deps and outs": ("dvc_data/hashfile/build.py", "build"),
    "read and write DVC's own locks": ("dvc/rwlock.py", "_edit_rwlock"),
    "import modules": ("<frozen importlib._bootstrap>", "_find_and_load"),
}


def measure(quick: bool) -> tuple[dict, list[Row]]:
    """Return the seconds of each command for each number of runs, and their ratio to a trivial pipeline, in turn."""
    rows, stages_of_runs = [], {}
    for runs, rounds in {8: 1}.items() if quick else ROUNDS_OF_RUNS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folders = {
                "ours": _ours(Path(scratch) / "ours", runs),
                "trivial": _trivial(Path(scratch) / "trivial", runs),
            }
            for folder in folders.values():
                _up_to_date(folder, "status")  # hashes every file, once
            for command, what in WHAT.items():
                kinds = {kind: partial(_up_to_date, folder, command) for kind, folder in folders.items()}
                taken_s = seconds_in_turn(kinds, rounds, warmup=0)
                low, high = (round(float(np.quantile(taken_s["ours"], q)), 2) for q in (0.1, 0.9))
                name, what = f"9-{command}-{runs}", f"{what}, {runs} runs"
                rows += [
                    Row(name, what, round(float(np.median(taken_s["ours"])), 2), None, "s", (low, high)),
                    ratio_row(
                        f"{name}-ratio",
                        f"{what} / as many trivial stages",
                        taken_s["ours"] / taken_s["trivial"],
                        TARGET,
                    ),
                ]
            stages = _lock(folders["ours"])["stages"].values()
            stages_of_runs[runs] = len(stages)
    deps = round(sum(len(stage["deps"]) for stage in stages) / len(stages))
    conditions = {"stages_of_runs": stages_of_runs, "rounds_of_runs": ROUNDS_OF_RUNS, "deps_per_stage": deps}
    reason = f"our stages have {deps} deps each, trivial ones one; DVC parses params.yaml once per stage"
    return conditions, [row if row.met in (None, True) else row._replace(note=reason) for row in rows]


def profile(command: str, runs: int) -> str:
    """Return the share of each of PARTS_OF_DVC in one `dvc COMMAND` with nothing to do at `runs` runs, by cProfile."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = _ours(Path(scratch) / "ours", runs), Path(scratch) / "profile"
        _up_to_date(folder, "status")  # hashes every file, once
        _dvc(folder, command, profile=file)
        stats = pstats.Stats(str(file))
    lines = [f"dvc {command} with nothing to do, {runs} runs: {stats.total_tt:.1f} s under cProfile"]
    for part, (end, function) in PARTS_OF_DVC.items():
        found = (row for (path, _, name), row in stats.stats.items() if path.endswith(end) and name == function)
        part_s = sum(cumulative_s for *_, cumulative_s, _ in found)
        lines.append(f"{part_s / stats.total_tt:6.1%}  {part}")
    return "\n".join(lines)


def _up_to_date(folder: Path, command: str) -> None:
    said = _dvc(folder, command)
    if "up to date" not in said:
        raise RuntimeError(f"{folder}: dvc {command} found something to do:\n{said}")


def _dvc(folder: Path, *command: str, profile: Path | None = None) -> str:
    """Return what a dvc command prints in `folder`, with caches of its own; `profile` is for cProfile to write."""
    own = {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(folder.with_name(f"{folder.name}_site_cache"))}
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    called = [sys.executable, *profiler, "-m", "dvc", *command]
    done = subprocess.run(called, cwd=folder, env=os.environ | own, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{folder}: dvc {' '.join(command)}:\n{done.stderr}")
    return done.stdout


def _ours(folder: Path, runs: int) -> Path:
    """Write this repository's pipeline with `runs` finished runs into `folder`; return it."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")) | {"seeds": []}
    run = {
        "student": "deeplabv3plus_mobilenet",
        "alpha": 0.3,
        "lr": 0.01,
        "teacher": params["teacher_logits"]["kinds"][0],
    }
    return _finished(folder, runs, params, run)


def _trivial(folder: Path, runs: int) -> Path:
    """Write as many stages in the same groups, each with one small dep, one out and no params; return `folder`."""
    real = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages = {}
    for name, stage in real.items():
        if "matrix" in stage:  # there are none without further seeds
            continue
        key = "${key}" if stage.get("foreach") == "${runs}" else "${item}" if "foreach" in stage else ""
        body = {"cmd": "true", "deps": ["dep.txt"], "outs": [f"outs/{name}/{key or 'only'}.txt"]}
        stages[name] = {"foreach": stage["foreach"], "do": body} if key else body
    write_text(folder / "dvc.yaml", yaml.safe_dump({"stages": stages}, sort_keys=False))
    write_text(folder / "dep.txt", "dep\n")
    kinds = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["teacher_logits"]["kinds"]
    return _finished(folder, runs, {"teacher_logits": {"kinds": kinds}}, {"alpha": 0.3})


def _finished(folder: Path, runs: int, params: dict, run: dict) -> Path:
    """Make `folder` a repository in which every stage of `runs` equal runs is up to date; return it.

    DVC commits the first run only. The others have the same bytes, so their entries in dvc.lock are copies of it.
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
    """Write small files for all outs of dvc.yaml: of the stages of `runs`, and of the stages that exist once."""
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values():
        if "matrix" in stage:
            continue
        body = stage.get("do", stage)
        outs = [out for section in ("outs", "metrics", "plots") for out in body.get(section, ())]
        for out in (next(iter(out)) if isinstance(out, dict) else out for out in outs):
            for name in runs if "${key}" in out else kinds:
                _write_out(folder / out.replace("${key}", name).replace("${item}", name))


def _write_out(path: Path) -> None:
    """Write a small file, or a folder of some where the name has no suffix."""
    if path.suffix:
        names = [path]
    else:
        names = [path / f"{number}.bin" for number in range(FILES_OF_FOLDER)] + [path / "val_classes.npz"]
    for name in names:
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(path.suffix or path.name, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=WHAT, required=True, help="the command to profile")
    parser.add_argument("--runs", type=int, default=32)
    given = parser.parse_args()
    print(profile(given.profile, given.runs))


if __name__ == "__main__":
    main()
