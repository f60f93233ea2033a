"""Does a student learn from cached views what it learns from the live teacher? Trained on real streets, seed by seed.

    cp benchmarks/parity.yaml params.yaml && dvc repro prepare teacher-check   # CamVid: docs/results-camvid.md
    python -m benchmarks.parity
    python -m benchmarks.parity --time                                             # live step / cached step, in time

Every arm trains the same student from one common start, for the same steps on batches drawn by the same seed; arms
differ in where crops and teacher logits come from. An arm and a seed are trained once: a later call continues the
results file.

    control       no teacher, crops drawn anew in every step
    live          the teacher runs in every step, crops drawn anew: the reference for a cache
    live-clock    the same, with as many steps as fit into the time of a cached run
    views-K       K cached crop views per frame
    frame         logits of whole frames, cropped; crops drawn anew
    views-8-full  as views-8, compared on pixels instead of the stride-4 grid
    views-8-uint8 as views-8, from logits stored in 8 bits
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from benchmarks.study import START_STEPS, STUDENT, Study, arms
from benchmarks.table import put_between
from segdistill.core.files import read_json, write_json
from segdistill.core.provenance import git_revision, package_versions, processor
from segdistill.params.read import load_params

HERE = Path(__file__).parent
# The factor and the decimals with which a metric is shown.
SHOWN = {"mean_iou": (100, 1), "teacher_agreement": (100, 1), "crop_kl": (1, 3)}


def table(runs: list[dict], names: list[str], metric: str) -> str:
    """Return Markdown: a metric of every arm by seed, its mean, and its difference to `live` by seed, with extremes."""
    factor, digits = SHOWN[metric]
    found = {(run["arm"], run["seed"]): factor * run[metric] for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    lines = [
        f"| {metric} | steps | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | against live (least to most) |",
        f"|---|---:|{'---:|' * len(seeds)}---:|---:|",
    ]
    for name in names:
        own = [found[name, seed] for seed in seeds if (name, seed) in found]
        if not own:
            continue
        steps = next(run["steps"] for run in runs if run["arm"] == name)
        cells = " | ".join(f"{found[name, seed]:.{digits}f}" if (name, seed) in found else "" for seed in seeds)
        apart = [found[name, s] - found["live", s] for s in seeds if {(name, s), ("live", s)} <= found.keys()]
        signed = [f"{value:+.{digits}f}" for value in (np.mean(apart), min(apart), max(apart))] if apart else []
        against = f"{signed[0]} ({signed[1]} to {signed[2]})" if signed and name != "live" else ""
        lines.append(f"| {name} | {steps} | {cells} | {np.mean(own):.{digits}f} | {against} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live-over-cached", type=float, help="a live step over a cached one, in time; else measured")
    parser.add_argument("--time", action="store_true", help="only measure and print that")
    parser.add_argument("--steps", type=int, default=150)
    # Few frames, seen often: then 2 or 4 views repeat, and it shows whether so few do harm.
    parser.add_argument("--every", type=int, default=4, help="train on every n-th frame")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--caches", type=Path, default=Path("scratch/parity"))
    parser.add_argument("--out", type=Path, default=HERE / "parity.json")
    given = parser.parse_args()
    study = Study(load_params(), given.alpha, given.every, given.caches)
    if given.live_over_cached is None or given.time:
        given.live_over_cached = study.live_over_cached()
        print(
            f"a live step takes {given.live_over_cached:.2f} cached ones; threads: {study.compute.threads}", flush=True
        )
    if given.time:
        return
    known = arms(given.live_over_cached)
    results = read_json(given.out) if given.out.exists() else {"conditions": {}, "runs": []}
    for seed in given.seeds:
        for name in given.arms or known:
            if any((run["arm"], run["seed"]) == (name, seed) for run in results["runs"]):
                continue
            results["runs"].append(study.train(name, known[name], seed, given.steps))
            results["conditions"] = conditions(study, given)
            write_json(given.out, results)
            print(results["runs"][-1], flush=True)
    page = "\n\n".join(table(results["runs"], list(known), metric) for metric in SHOWN)
    put_between(HERE.parent / "docs" / "benchmarks.md", "parity", page)


def conditions(study: Study, given: argparse.Namespace) -> dict:
    """Return the conditions of the measurement."""
    teacher = read_json(Path("metrics/teacher.json"))
    return {
        "teacher": {"arch": teacher["arch"], "mean_iou": teacher["mean_iou"], "sha256": teacher["weights_sha256"]},
        "student": STUDENT,
        "frames": {"train": len(study.data.train), "val": len(study.data.val), "size_px": study.data.train.size_px},
        "crop_px": study.params.distill.crop_px,
        "batch": study.params.distill.batch_size,
        "alpha": given.alpha,
        "start_steps": START_STEPS,
        "live_over_cached": given.live_over_cached,
        "threads": study.compute.threads,
        "processor": processor(),
        "versions": package_versions("torch", "numpy", "segdistill"),
        "git_revision": git_revision(),
        "cores": os.cpu_count(),
    }


if __name__ == "__main__":
    main()
