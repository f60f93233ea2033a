"""A quick trial of the benchmarks that start stages and DVC."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PARTS = ("startup", "dvc_cost")


def test_benchmarks_run_and_write_their_rows(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copyfile(ROOT / "docs/benchmarks.md", tmp_path / "docs/benchmarks.md")
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--only", *PARTS]
    command += ["--out", str(tmp_path / "results.json"), "--documents", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["part"] for row in results["rows"]} == set(PARTS)
    assert all(row["value"] > 0 for row in results["rows"])
    assert "12-report" in (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")
