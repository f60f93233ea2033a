"""A new metric is one edit: a line in results/row.py shows it in every place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import segdistill
from support.fake_metrics import write_metrics

LINE = '    ece: float | None = metric("ECE", ".3f", "calibration error on val", "finished.ece", better=min)\n'
BEFORE = "    teacher_agreement: float | None = metric(\n"
SHOW = """
import sys
from pathlib import Path
from segdistill.compare.runs import compare_runs
from segdistill.compare.tables import markdown as compared
from segdistill.report.page import write_report
from segdistill.report.terminal import markdown
from segdistill.results.summary import summarise, write_summary
from segdistill.tracking.rows import rows_on_disk
from support.fake_metrics import sweep_params

params, metrics = sweep_params(), Path("metrics")
summary = summarise(params, metrics)
write_summary(summary, metrics)
write_report(summary, metrics, Path("index.html"))
Path("show.md").write_text(markdown(summary))
Path("compare.md").write_text(compared(compare_runs(params, metrics, ["vanilla", "a03"])))
Path("logged").write_text(str({row.run: row.metrics.get("val/ece") for row in rows_on_disk(params, metrics)}))
"""


def test_one_line_adds_a_metric_to_every_table(tmp_path: Path) -> None:
    source = Path(segdistill.__file__).parent
    shutil.copytree(source, tmp_path / "src" / "segdistill", ignore=shutil.ignore_patterns("__pycache__"))
    declarations = tmp_path / "src" / "segdistill" / "results" / "row.py"
    text = declarations.read_text(encoding="utf-8")
    assert text.count(BEFORE) == 1
    declarations.write_text(text.replace(BEFORE, LINE + BEFORE), encoding="utf-8")

    metrics = write_metrics(tmp_path / "metrics")
    for run, value in (("vanilla", 0.125), ("a03", 0.0625)):
        path = metrics / "runs" / run / "finetune.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"ece": value}))
    paths = [str(tmp_path / "src"), str(Path(__file__).parents[2])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", SHOW], check=True, cwd=tmp_path, env=environment)

    header, *lines = (metrics / "summary.csv").read_text().splitlines()
    place = header.split(",").index("ece")
    assert [line.split(",")[place] for line in lines] == ["", "0.125", "0.0625", ""]
    assert json.loads((metrics / "summary.json").read_text())["runs"]["a03"]["ece"] == 0.0625
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'title="calibration error on val"' in page
    assert 'data-value="0.0625">0.062</td>' in page
    assert "| ECE |" in (tmp_path / "show.md").read_text()
    assert "0.125" in (tmp_path / "show.md").read_text()
    assert "| ECE | 0.125 | **0.062** |" in (tmp_path / "compare.md").read_text()
    assert (tmp_path / "logged").read_text() == "{'teacher': None, 'vanilla': 0.125, 'a03': 0.0625, 'light': None}"
