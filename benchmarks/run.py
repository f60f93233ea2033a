"""Measure the claims and write benchmarks/results.json and a table: python benchmarks/run.py. Nothing else may run."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import step_cost

from segdistill.compute import choose
from segdistill.files import write_json
from segdistill.provenance import git_revision, package_versions, processor

RESULTS = Path(__file__).parent / "results.json"


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| # | what | measured | 10th to 90th percentile | target |", "|---|---|---:|---|---|"]
    for row in rows:
        target = "-" if row["target"] is None else f"at most {row['target']}"
        spread = " to ".join(map(str, row["spread"]))
        lines.append(f"| {row['row']} | {row['what']} | {row['value']} | {spread} | {target} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds over all kinds of step")
    rounds = parser.parse_args().rounds
    compute = choose("auto", "auto", 0)
    conditions, rows = step_cost.measure(compute, rounds)
    conditions |= {
        "processor": processor(),
        "device": str(compute.device),
        "precision": str(compute.dtype),
        "threads": compute.threads,
        "versions": package_versions("torch", "numpy", "segdistill"),
        "git_revision": git_revision(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    write_json(RESULTS, {"conditions": conditions, "rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
