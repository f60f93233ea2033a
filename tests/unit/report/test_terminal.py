"""The summary in the terminal and as Markdown: names as they are, sorted, cut, grouped, the answer last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from segdistill.core.errors import UserError
from segdistill.report.terminal import markdown, print_summary
from segdistill.results.summary import Summary, of_rows, summarise
from support.fake_metrics import write_sweep
from support.rows import one


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    metrics = tmp_path_factory.mktemp("sweep") / "metrics"
    params = write_sweep(metrics, [0.50, 0.52], {"up": [0.05, 0.06], "down": [-0.03, -0.04]})
    return summarise(params, metrics)


def names(text: str) -> list[str]:
    return [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")][1:]


def test_names_are_shown_as_they_are_and_the_answer_comes_last(capsys: pytest.CaptureFixture) -> None:
    print_summary(of_rows([one("vanilla", 0.5, role="control"), one("[bold]x[/bold]", 0.6)], {}))
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "+10.00" in shown
    assert shown.index("reports/index.html") < shown.index("make ui") < shown.index("Ship [bold]x[/bold]")


def test_log_shows_whole_names_in_whole_lines(capsys: pytest.CaptureFixture) -> None:
    """As of a sweep with both weights and unseen drives, whose table is wider than what a log is taken for."""
    name = "lite0-with-a-long-name"
    row = replace(one(name, 0.6), label_weight=1.0, distill_weight=1.0, unseen_mean_iou=0.5)
    print_summary(of_rows([one("vanilla", 0.5, role="control"), row], {}))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
    assert "50.00%" in line


def test_rows_are_sorted_best_first_and_cut(sweep: Summary) -> None:
    assert names(markdown(sweep, sort="mean_iou", top=3)) == ["teacher", "up-s1", "up-s0"]
    assert names(markdown(sweep, sort="onnx_int8_p50_ms"))[-1] == "teacher"  # unknown values come last
    assert names(markdown(sweep))[:2] == ["teacher", "vanilla-s0"]


def test_group_has_one_line_per_setting(sweep: Summary) -> None:
    text = markdown(sweep, sort="gain_over_vanilla", group=True)
    assert names(text) == ["up", "down", "vanilla"]
    assert "| up | 2 | 56.50% |" in text


def test_unseen_drives_have_columns_where_there_are_any(sweep: Summary) -> None:
    assert "unseen" not in markdown(sweep) + markdown(sweep, group=True)
    rows = [replace(row, unseen_mean_iou=0.3 + 0.01 * (row.run == "up-s1")) for row in sweep.rows]
    found = of_rows(rows, sweep.benchmark)
    assert "| mIoU unseen | Δ unseen |" in markdown(found)
    assert "| Δ unseen | 95% interval |" in markdown(found, group=True)
    assert "mIoU int8 unseen" not in markdown(found), "export.json of an earlier build has no such metric"
    scored = of_rows([replace(row, int8_unseen_mean_iou=0.29) for row in rows], sweep.benchmark)
    assert "| mIoU int8 | mIoU int8 unseen |" in markdown(scored)
    assert "| 29.00% |" in markdown(scored)
    assert names(markdown(found, sort="unseen_gain_over_vanilla", group=True))[0] == "up"


def test_unknown_metric_to_sort_by_is_refused_with_the_known_ones(sweep: Summary) -> None:
    with pytest.raises(UserError, match=r"--sort: found 'miou'; allowed are .*mean_iou"):
        markdown(sweep, sort="miou")
    with pytest.raises(UserError, match=r"found 'alpha'; allowed are mean_iou, gain_over_vanilla"):
        markdown(sweep, sort="alpha", group=True)


def test_report_is_named(capsys: pytest.CaptureFixture) -> None:
    print_summary(of_rows([one("a", 0.5)], {}), Path("elsewhere.html"))
    assert "report  elsewhere.html" in capsys.readouterr().out
