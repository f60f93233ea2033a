"""How a run looks in every chart, table and legend of the report."""

from __future__ import annotations

from segdistill.results.row import CONTROL
from segdistill.results.summary import Summary

# Told apart on white and on near-black alike; greys are kept for the teacher, the controls and the front.
COLORS = ("#3f7fd6", "#dd7a2b", "#2b9a72", "#c74f86", "#8764d0", "#ad8d17", "#24a0b5", "#cf4f3f")
TEACHER_COLOR, FRONT_COLOR = "#8a8f98", "#9aa0aa"
CONTROL_COLORS = ("#6b7280", "#a08c7d")
DASHES = {"solid": "none", "dash": "7 3", "dot": "2 2", "dashdot": "7 2 2 2"}  # by the name plotly has for it: as SVG


def line_styles(summary: Summary) -> dict[str, dict]:
    """Colour and dash of each run, by its name; the same in all charts."""
    styles, students, controls, dashes = {}, 0, 0, tuple(DASHES)
    for row in summary.runs:
        if row.role == CONTROL:
            color, dash = CONTROL_COLORS[controls % len(CONTROL_COLORS)], dashes[controls // 2 % len(dashes)]
            controls += 1
        else:
            color, dash = COLORS[students % len(COLORS)], dashes[students // len(COLORS) % len(dashes)]
            students += 1
        styles[row.run] = {"color": color, "dash": dash}
    return styles


def stroke(style: dict) -> str:
    """A short piece of a run's line as HTML."""
    return (
        '<svg class="stroke" viewBox="0 0 24 8" aria-hidden="true">'
        f'<path d="M0 4h24" stroke="{style["color"]}" stroke-dasharray="{DASHES[style["dash"]]}"/></svg>'
    )


def rounded(value: float) -> float:
    """Five significant digits: more cannot be seen in a chart, and weigh."""
    return float(f"{value:.5g}")
