"""report: metrics/ -> metrics/summary.json, metrics/summary.csv, reports/index.html and a table on the terminal."""

from segdistill.core.stage import stage_process

if __name__ == "__main__":
    with stage_process():
        from segdistill.core.streams import print_anywhere
        from segdistill.params.read import load_params
        from segdistill.params.stages import announce_stage
        from segdistill.paths import METRICS, REPORT
        from segdistill.report.page import write_report
        from segdistill.report.terminal import print_summary
        from segdistill.results.summary import summarise, write_summary
        from segdistill.tracking.mlflow import track
        from segdistill.training.checkpoint import clear_removed

        params = load_params()
        announce_stage(params)
        summary = summarise(params, METRICS, check_stale=False)  # DVC ran every stage before this one
        write_summary(summary, METRICS)
        write_report(summary, METRICS, REPORT)
        track(params, METRICS)
        clear_removed(params)
        print_anywhere()
        print_summary(summary, REPORT)
