"""Write the report: one HTML file with its style, script, charts and images in it.

`templates/report.html.j2` is the page; Jinja escapes every text in it. A content security policy in the page forbids it
any request.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from segdistill.core.files import write_text
from segdistill.report import charts, sections
from segdistill.report.images import image_strips
from segdistill.report.published import published_tables
from segdistill.report.teacher import teacher_part
from segdistill.report.words import answer
from segdistill.results.row import CONTROL, MORE, RUNS, shown_in
from segdistill.results.summary import Summary

TEMPLATES = Path(__file__).parent / "templates"
STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("script.js")


def write_report(summary: Summary, metrics: Path, out: Path) -> None:
    """Write the report of `summary` to `out`, with the curves and records found under `metrics`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` writes <, > and & as \u003c and so on, so that no name can end the script element.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    write_text(out, environment.get_template("report.html.j2").render(page_data(summary, metrics)))


def page_data(summary: Summary, metrics: Path) -> dict[str, Any]:
    """Return everything that the template shows, as plain data; only style and scripts are marked as HTML."""
    found, matrices = answer(summary), charts.matrices(summary, metrics)
    shown, styles = charts.timed_files(summary), charts.line_styles(summary)
    timed_runs = {file.run for file in shown}
    # The first reason repeats in words what the tiles show.
    reasons = found.reasons[1:] if summary.champion else found.reasons
    return {
        "style": Markup(STYLE.read_text(encoding="utf-8")),
        "script": Markup(SCRIPT.read_text(encoding="utf-8")),
        "plotly_js": Markup(get_plotlyjs()),
        "headline": found.headline,
        "reasons": reasons,
        "rule": found.rule,
        "file": summary.champion.path if summary.champion else None,
        "tiles": sections.tiles(summary),
        "runs": sections.runs_table(summary, shown_in(RUNS, summary.rows)),
        "more": sections.runs_table(summary, shown_in(MORE, summary.rows)),
        "settings": sections.settings_table(summary),
        "settings_note": sections.settings_note(summary),
        "uncontrolled": any(
            row.control and row.role != CONTROL and summary.run(row.control).arch != row.arch for row in summary.runs
        ),
        "lines": {run: style | {"dash": charts.DASHES[style["dash"]]} for run, style in styles.items()},
        "front_line": {"color": charts.FRONT_COLOR, "dash": charts.DASHES["dot"]},
        "forms": [charts.FORMS[form][1:] for form in charts.by_form(shown)],
        "shown_settings": [
            (one.name, one.rows[0].run) for one in summary.settings if any(row.run in timed_runs for row in one.rows)
        ],
        "teacher_engine": summary.teacher and (summary.teacher.timed() or (None,))[0],
        "heat": sections.class_heat(summary),
        "matrices": [matrix.label for matrix in matrices],
        "mistakes": sections.mistakes_table(matrices),
        "strips": image_strips(summary, metrics),
        "teacher": teacher_part(summary, metrics),
        "void_color": sections.NOT_EVALUATED,
        "published": published_tables(summary),
        "conditions": sections.conditions(summary),
        "networks": sections.networks_table(summary),
        "params": sections.params_text(summary),
        "charts": {
            "tradeoff": charts.tradeoff_chart(summary),
            "curves": charts.curves_chart(summary, metrics),
            "confusion": charts.confusion_chart(matrices),
        },
    }
