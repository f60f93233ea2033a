"""Measure the claims about speed; write results.json and the tables of the documents. Let nothing else run meanwhile.

python -m benchmarks.run                # all parts
python -m benchmarks.run --only steps   # one part; results.json keeps the rows of the others
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.table import write_table
from segdistill.core.errors import exit_on_user_error
from segdistill.core.files import read_json, write_json
from segdistill.core.provenance import git_revision, package_versions, processor

HERE = Path(__file__).parent
# A part is a module here with measure(quick) -> (conditions, rows).
PARTS = (
    "startup",
    "steps",
    "convolutions",
    "sweep",
    "ways",
    "loading",
    "latency",
    "evaluation",
    "preparing",
    "memory",
    "cache_precision",
    "dvc_cost",
)


def measured(part: str, quick: bool) -> dict:
    """Return the conditions and rows of one part, with the seconds it took."""
    started = time.perf_counter()
    conditions, rows = importlib.import_module(f"benchmarks.{part}").measure(quick)
    taken_s = round(time.perf_counter() - started)
    print(f"{part}: {taken_s} s, load average {os.getloadavg()[0]:.1f}", flush=True)
    # Of this part, because the others may be from an earlier revision.
    conditions |= {"measured_in_s": taken_s, "git_revision": git_revision(), "date": today()}
    return {"conditions": conditions, "rows": [row._asdict() for row in rows]}


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def instruction_sets() -> list[str]:
    """Return those that decide which precision and kernels are fast here; none where Linux on x86 does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    return [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if name in flags]


def machine() -> dict:
    """Return the conditions that all parts share."""
    return {
        "processor": processor(),
        "instruction_sets": instruction_sets(),
        "threads": len(os.sched_getaffinity(0)),
        "versions": package_versions("torch", "torchvision", "onnxruntime", "numpy", "pillow", "dvc", "segdistill"),
        "git_revision": git_revision(),
        "date": today(),
    }


def gathered(parts: dict[str, dict]) -> dict:
    """Return the content of the results file: conditions of machine and parts, and all rows, in the order of PARTS."""
    present = [part for part in PARTS if part in parts]
    return {
        "conditions": machine() | {part: parts[part]["conditions"] for part in present},
        "rows": [row | {"part": part} for part in present for row in parts[part]["rows"]],
    }


def parts_of(results: dict) -> dict[str, dict]:
    """Return the content of an earlier results file, part by part."""
    rows: dict[str, list] = {}
    for row in results["rows"]:
        rows.setdefault(row["part"], []).append({key: row[key] for key in Row._fields})
    return {part: {"conditions": results["conditions"][part], "rows": own} for part, own in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, help="measure these parts, keep the rows of the others")
    parser.add_argument("--quick", action="store_true", help="a trial of the code: its numbers mean little")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--documents", type=Path, default=HERE.parent, help="folder that has docs/benchmarks.md")
    given = parser.parse_args()
    with exit_on_user_error():
        parts = parts_of(read_json(given.out)) if given.only and given.out.exists() else {}
        for part in given.only or PARTS:
            # A process each: some parts change what others measure, such as keeping freed memory.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                parts[part] = process.submit(measured, part, given.quick).result()
            write_json(given.out, gathered(parts))
        write_table(given.documents / "docs" / "benchmarks.md", gathered(parts))


if __name__ == "__main__":
    main()
