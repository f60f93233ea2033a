"""report: metrics/ -> metrics/summary.json, metrics/summary.csv, reports/index.html and a table on the terminal."""

from pathlib import Path

from segdistill.base.stage_process import stage_process

METRICS, REPORT = Path("metrics"), Path("reports/index.html")

if __name__ == "__main__":
    with stage_process():
        from segdistill.base.params_file import load_params
        from segdistill.report import write_report
        from segdistill.report.terminal import print_summary
        from segdistill.summary import summarise, write_summary
        from segdistill.tracking import track
        from segdistill.training.scratch import clear_removed

        params = load_params()
        summary = summarise(params, METRICS)
        write_summary(summary, METRICS)
        write_report(summary, METRICS, REPORT)
        track(params, METRICS)
        clear_removed(params)
        print_summary(summary, REPORT)
