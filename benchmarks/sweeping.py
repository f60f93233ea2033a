"""What `segdistill sweep` costs per run and how much sooner a sweep ends, on runs that only sleep.

    python -m benchmarks.sweeping                                # 8, 32 and 128 runs of 30 s, 8 at a time
    python -m benchmarks.sweeping --ray                          # the same on a Ray cluster of one node, here
    python -m benchmarks.sweeping --runs 4 --seconds 1 --jobs 2  # a trial

Runs that sleep need no core, so what is left is the cost of DVC and of the sweep: with --ray also that of clones, pulls
and pushes, for all of which this machine has to be enough. The stages have the names and the order of this pipeline,
one small out each, and no code.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.ray_cluster import ray_cluster
from benchmarks.rows import Row
from benchmarks.table import table
from segdistill.core.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "profiles" / "tiny.yaml"
FAILING = 0.5


def sleeping_project(folder: Path, runs: list[str], seconds: float) -> Path:
    """Write a pipeline with the stages of this one, whose `distill` sleeps and whose others do nothing; return it.

    A run whose lr is FAILING fails.
    """
    params = yaml.safe_load(PROFILE.read_text(encoding="utf-8"))
    control = params["runs"]["vanilla"]
    params["runs"] = {run: dict(control) for run in runs}
    write_text(folder / "params.yaml", yaml.safe_dump(params, sort_keys=False))

    def stage(out: str, *deps: str, first: str = "true", **keys: object) -> dict:
        body = {"cmd": f"{first} && mkdir -p $(dirname {out}) && echo '{{}}' > {out}", "outs": [out]}
        return body | ({"deps": list(deps)} if deps else {}) | keys

    models, metrics = "models/runs/${key}", "metrics/runs/${key}"
    own = {"params": ["runs.${key}"]}
    of_run = {
        "distill": stage(
            f"{models}/distilled.safetensors",
            "data/teacher_logits/views",
            first=f"test ${{item.lr}} != {FAILING} && sleep {seconds}",
            **own,
        ),
        "steplr-finetune": stage(f"{metrics}/finetune.json", f"{models}/distilled.safetensors", **own),
        "export-onnx": stage(f"{models}/student.onnx", f"{metrics}/finetune.json", **own),
    }
    # Each also reads what the same stage of its run wrote.
    of_repetition = {
        "distill-repeat": stage(f"{models}/distilled.safetensors", "models/runs/${item.run}/distilled.safetensors"),
        "steplr-finetune-repeat": stage(
            f"{metrics}/finetune.json", f"{models}/distilled.safetensors", "metrics/runs/${item.run}/finetune.json"
        ),
        "export-onnx-repeat": stage(
            f"{models}/student.onnx",
            f"{metrics}/finetune.json",
            "models/runs/${item.run}/student.onnx",
            params=["export"],
        ),
    }
    logits = stage("data/teacher_logits/${item}", "models/teacher")
    stages = {
        "prepare": stage("data/prepared", params=["seed"]),
        "teacher-check": stage("models/teacher", "data/prepared"),
        "teacher-logits": {"foreach": "${teacher_logits.kinds}", "do": logits},
        **{name: {"foreach": "${runs}", "do": body} for name, body in of_run.items()},
        **{name: {"matrix": {"run": "${runs}", "seed": "${seeds}"}} | body for name, body in of_repetition.items()},
        "benchmark": stage("metrics/benchmark.json", "models/runs"),
        "report": stage("reports/index.html", "metrics/runs", "metrics/benchmark.json"),
    }
    write_text(folder / "dvc.yaml", yaml.safe_dump({"stages": stages}, sort_keys=False))
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=folder, check=True, env=environment(folder))
    return folder


def commit_and_connect(folder: Path, store: Path) -> None:
    """Commit all of a project, and give it a DVC remote in the folder `store`."""
    store.mkdir()
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    connect = [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--local", "--default", "store", str(store)]
    for command in (["git", "add", "--all"], ["git", *identity, "commit", "--quiet", "--message", "start"], connect):
        subprocess.run(command, cwd=folder, check=True, env=environment(folder))


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which DVC keeps its own caches of `folder` apart from those of the user."""
    own = {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(folder.with_name(f"{folder.name}_site_cache"))}
    return os.environ | own


def sweep_s(runs: int, seconds: float, *where: str) -> float:
    """Return the seconds that a sweep of sleeping runs takes; `where` are its options."""
    with tempfile.TemporaryDirectory() as scratch:
        names = [f"run-{number:03d}" for number in range(runs)]
        folder = sleeping_project(Path(scratch) / "project", names, seconds)
        commit_and_connect(folder, Path(scratch) / "store")
        command = [sys.executable, "-m", "segdistill", "sweep", *where]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"segdistill sweep: {done.stdout}{done.stderr}")
        return time.perf_counter() - started


def rows(runs: int, jobs: int, seconds: float, address: str | None) -> list[Row]:
    """Return the overhead per run and the speed-up over one run after the other, without any cost of DVC."""
    where = ["--jobs", str(jobs)] if address is None else ["--address", address, "--cpus", "1"]
    taken_s = sweep_s(runs, seconds, *where)
    slept_s = -(-runs // jobs) * seconds
    name = f"sweep-{runs}" if address is None else f"sweep-ray-{runs}"
    what = f"{runs} runs of {seconds:g} s, {jobs} at a time" + (" on a Ray cluster" if address else "")
    return [
        Row(
            f"{name}-overhead",
            f"{what}: time over that of the sleeps, per run",
            round((taken_s - slept_s) / runs, 2),
            None,
            "s",
            None,
        ),
        Row(f"{name}-speedup", f"{what}: all sleeps / time", round(runs * seconds / taken_s, 2), None, "ratio", None),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="that each run sleeps")
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster, which is started here")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        address = None
        if given.ray:
            cache = stack.enter_context(tempfile.TemporaryDirectory())
            address = stack.enter_context(ray_cluster(1, given.jobs, XDG_CACHE_HOME=cache)).address
        print(table([row for runs in given.runs for row in rows(runs, given.jobs, given.seconds, address)]))


if __name__ == "__main__":
    main()
