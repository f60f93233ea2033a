"""The report: one HTML file that opens anywhere, offline, and answers first which student to ship.

Its frame is `template.html`, with style.css and script.js; the pieces come from the modules beside it. A content
security policy in the page forbids it any request.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from segdistill.core.files import write_text
from segdistill.report.answer import answer
from segdistill.report.conditions import conditions_list, networks_table, params_text
from segdistill.report.confusion import choice_of_matrix, confusion_figure, matrices, mistakes_table
from segdistill.report.curves import curves_figure
from segdistill.report.pictures import picture_strips, states_legend
from segdistill.report.published import source_a_table, source_b_table
from segdistill.report.tables import KEY_COLUMNS, OTHER_COLUMNS, class_legend, class_table, has_uncontrolled, runs_table
from segdistill.report.tiles import tiles
from segdistill.report.tradeoff import teacher_note, tradeoff_figure, tradeoff_legend
from segdistill.results.summary import Summary

TEMPLATE = Path(__file__).with_name("template.html")
STYLE = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("script.js")
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_report(summary: Summary, metrics: Path, out: Path) -> None:
    """Write the report of `summary` to `out`, with the curves and records found under `metrics`."""
    found, confusions, strips = answer(summary), matrices(summary, metrics), picture_strips(summary, metrics)
    # The first one repeats in words what the tiles show.
    reasons = found.reasons[1:] if summary.champion else found.reasons
    pieces = {
        "style": STYLE.read_text(encoding="utf-8"),
        "headline": escape(found.headline),
        "tiles": tiles(summary),
        "reasons": "".join(f"<li>{escape(reason)}</li>" for reason in reasons),
        "file": f"<p class='file'><code>{escape(summary.champion.path)}</code></p>" if summary.champion else "",
        "rule": escape(found.rule),
        "runs": runs_table(summary, KEY_COLUMNS),
        "uncontrolled": _UNCONTROLLED if has_uncontrolled(summary) else "",
        "all_figures": runs_table(summary, OTHER_COLUMNS),
        "teacher_note": escape(teacher_note(summary)),
        "tradeoff_legend": tradeoff_legend(summary),
        "class_iou": class_table(summary),
        "choice_of_matrix": choice_of_matrix(confusions),
        "mistakes": mistakes_table(confusions),
        "legend": class_legend(summary),
        "states_legend": states_legend(),
        "pictures": strips.pictures,
        "picture_rule": escape(strips.rule),
        "source_a": source_a_table(summary, metrics),
        "source_b": source_b_table(summary),
        "conditions": conditions_list(summary),
        "networks": networks_table(summary),
        "params": params_text(summary),
        "figures": _json_in_html(
            {
                "tradeoff": tradeoff_figure(summary),
                "curves": curves_figure(summary, metrics),
                "confusion": confusion_figure(confusions),
            },
        ),
        "plotly_js": get_plotlyjs(),
        "script": SCRIPT.read_text(encoding="utf-8"),
    }
    # One pass, so that nothing in the data can be taken for a slot.
    template = TEMPLATE.read_text(encoding="utf-8")
    write_text(out, _SLOT.sub(lambda match: pieces[match[1]], template))


_UNCONTROLLED = (
    "<p class='note'>Some runs have no control of their own network: their Δ is taken against another network's "
    "control, and says nothing about distilling. Hover a Δ to see which.</p>"
)


def _json_in_html(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
