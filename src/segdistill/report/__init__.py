"""The report: one HTML file that opens anywhere, offline, and answers first which student to ship.

Its frame, style and script are `template.html`; the pieces come from answer, tables, figures and pictures. A content
security policy in the page forbids it any request.
"""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from segdistill.files import write_text
from segdistill.report.answer import answer
from segdistill.report.figures import curves_figure, tradeoff_figure
from segdistill.report.pictures import picture_strips
from segdistill.report.tables import (
    KEY_COLUMNS,
    OTHER_COLUMNS,
    class_legend,
    class_table,
    conditions_list,
    has_uncontrolled,
    networks_table,
    runs_table,
)
from segdistill.summary import Summary

TEMPLATE = Path(__file__).with_name("template.html")
_SLOT = re.compile(r"\{\{(\w+)\}\}")


def write_report(summary: Summary, metrics: Path, out: Path) -> None:
    """Write the report of `summary` to `out`, with the curves and pictures found under `metrics`."""
    found = answer(summary)
    pieces = {
        "headline": escape(found.headline),
        "reasons": "".join(f"<li>{escape(reason)}</li>" for reason in found.reasons),
        "rule": escape(found.rule),
        "runs": runs_table(summary, KEY_COLUMNS),
        "uncontrolled": _UNCONTROLLED if has_uncontrolled(summary) else "",
        "all_figures": runs_table(summary, OTHER_COLUMNS),
        "class_iou": class_table(summary),
        "legend": class_legend(summary),
        "pictures": picture_strips(summary, metrics),
        "conditions": conditions_list(summary),
        "networks": networks_table(summary),
        "figures": _json_in_html(
            {"tradeoff": tradeoff_figure(summary), "curves": curves_figure(summary, metrics)},
        ),
        "plotly_js": get_plotlyjs(),
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
