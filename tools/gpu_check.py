"""Check on one GPU what no other machine can show, in eight minutes, and print a table.

    python tools/gpu_check.py --download build/wheels # beforehand, with a network: the packages that it needs
    python tools/gpu_check.py --wheels build/wheels   # on the machine with the GPU, which has torch and torchvision
    python tools/gpu_check.py                         # where segdistill is installed already
    python tools/gpu_check.py --device cpu --small    # a trial of the script

It needs neither DVC nor MLflow. Results go to benchmarks/results-gpu.json, after each check, so that what was measured
is there when time is over. The exit code is 1 when a check fails or misses its target.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What the checks import besides torch, torchvision and their own dependencies (NumPy, Pillow, filelock). With those of
# each: pip adds them.
PACKAGES = ("pydantic", "pytest", "pyyaml", "rich", "safetensors")


def main() -> None:
    """Download the packages, or run the checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a trial whose numbers mean nothing")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="run these checks")
    parser.add_argument("--minutes", type=float, default=6.0, help="start no check after this time (6)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results-gpu.json")
    parser.add_argument(
        "--wheels", type=Path, metavar="FOLDER", help="install the packages in it into a folder that goes"
    )
    parser.add_argument("--download", type=Path, metavar="FOLDER", help="download the packages into it, and end")
    parser.add_argument(
        "--python", default="3.12", metavar="VERSION", help="of the other machine, for --download (3.12)"
    )
    given = parser.parse_args()
    if given.download:
        pip(
            "download", "--only-binary=:all:", f"--python-version={given.python}", f"--dest={given.download}", *PACKAGES
        )
        return
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="segdistill-wheels-") as installed:
        # Processes that the checks start find the same code.
        paths = [str(ROOT), str(ROOT / "src")]
        if given.wheels:
            pip(
                "install",
                "--quiet",
                "--no-warn-conflicts",
                "--no-index",
                f"--find-links={given.wheels}",
                f"--target={installed}",
                *PACKAGES,
            )
            paths.append(installed)
        sys.path[:0] = paths
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        sys.exit(run_checks(given, started_s))


def pip(*arguments: str) -> None:
    """Run pip; its message is enough where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False)
    if done.returncode:
        sys.exit(f"error: pip {arguments[0]} failed; its message is above")


def run_checks(given: argparse.Namespace, started_s: float) -> int:
    """Run the checks, write and print their rows, and return the exit code."""
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            f"error: torch {torch.__version__} finds no CUDA device; --device cpu --small tries the script on a CPU",
            file=sys.stderr,
        )
        return 1
    if given.device == "cpu" and not given.small:
        print("error: --device cpu: its checks take hours at full size; add --small", file=sys.stderr)
        return 1
    from benchmarks.gpu import CHECKS, Setup
    from benchmarks.rows import Row
    from benchmarks.run import machine
    from benchmarks.table import table
    from segdistill.core.files import write_json

    if unknown := set(given.only or ()) - set(CHECKS):
        print(f"error: --only: found {', '.join(sorted(unknown))}; allowed are {', '.join(CHECKS)}", file=sys.stderr)
        return 1
    rows: list[Row] = []
    taken_s: dict[str, float] = {}
    failed = []
    conditions = machine() | {"device": given.device, "small": given.small}
    if given.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        conditions |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    for name in given.only or CHECKS:
        began_s = time.monotonic()
        if began_s - started_s > 60 * given.minutes:
            rows.append(Row(name, "not run: the time was over", 1, "at most 0", "checks", None))
            continue
        try:
            rows += CHECKS[name](Setup(given.device, given.small))
        except Exception as error:  # noqa: BLE001 - the other checks still tell something
            cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            rows.append(Row(name, f"failed: {cause}", 1, "at most 0", "checks", None))
            failed.append(name)
        if given.device == "cuda":
            torch.cuda.empty_cache()
        taken_s[name] = round(time.monotonic() - began_s, 1)
        print(f"{name}: {taken_s[name]} s", file=sys.stderr, flush=True)
        results = {"conditions": conditions | {"seconds": taken_s}, "rows": [row._asdict() for row in rows]}
        write_json(given.out, results)
    print(table(rows))
    missed = [row.row for row in rows if row.met is False]
    # The targets are those of full sizes.
    return 1 if failed or (missed and not given.small) else 0


if __name__ == "__main__":
    main()
