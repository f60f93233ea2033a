"""Where a result comes from: git revision, package versions, hashes of files and settings."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from segdistill.core.errors import UserError

THREADS_VARIABLE = "SEGDISTILL_THREADS"


def git_revision(folder: str | Path = ".") -> str:
    """Return the commit of `folder`, with "-dirty" when its code differs; "unknown" outside a repository.

    Only `src` and `stages` count as code: dvc.lock changes with every stage that ends.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "stages")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def file_sha256(path: str | Path) -> str:
    """Return the hex SHA-256 of a file."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def code_hash() -> str:
    """Return a short hash of the files of the loaded modules of this package."""
    loaded = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    ours = sorted((name, file) for name, file in loaded.items() if name.split(".")[0] == "segdistill" and file)
    return settings_hash([(name, file_sha256(file)) for name, file in ours])


def settings_hash(*settings: object) -> str:
    """Return a short hash of JSON-like values that does not depend on the order of keys."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def package_versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the model name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    It is SEGDISTILL_THREADS where that is set, as `segdistill sweep` does for runs that share a machine, else the
    number of cores that the process may run on.

    Raises:
        UserError: the variable holds no such number.
    """
    if given := os.environ.get(THREADS_VARIABLE):
        if not re.fullmatch("[1-9][0-9]{0,3}", given):
            raise UserError(f"{THREADS_VARIABLE}: found {given!r}; allowed is a number of threads from 1 to 9999")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
