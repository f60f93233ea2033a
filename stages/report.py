"""report: metrics/ -> metrics/summary.json, metrics/summary.csv, reports/index.html and a table on the terminal."""

from pathlib import Path

from segdistill.errors import told_plainly
from segdistill.params_file import load_params
from segdistill.report import write_report
from segdistill.report.terminal import print_summary
from segdistill.summary import summarise, write_summary
from segdistill.tracking import track

METRICS, REPORT = Path("metrics"), Path("reports/index.html")

if __name__ == "__main__":
    with told_plainly():
        params = load_params()
        summary = summarise(params, METRICS)
        write_summary(summary, METRICS)
        write_report(summary, METRICS, REPORT)
        track(params, METRICS)
        print_summary(summary, REPORT)
