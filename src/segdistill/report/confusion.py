"""What is taken for what: the confusion matrices of teacher, control and best student, and the largest mistakes."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segdistill.results.row import CONTROL, TEACHER
from segdistill.results.summary import Summary
from segdistill.scoring.record import ValRecord

MAX_MISTAKES = 8
MISSING = "–"
_CLASS_AXIS = {"showgrid": False, "ticks": "", "dtick": 1}


class Matrix(NamedTuple):
    """`counts`: pixels int64 (C, C) of one model, row = true class; `label` is what a reader calls the model."""

    label: str
    names: list[str]
    counts: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """(C, C): share of the pixels of a true class that are called each class; NaN where it does not occur."""
        of_class = self.counts.sum(1, keepdims=True)
        return np.divide(self.counts, of_class, out=np.full(self.counts.shape, np.nan), where=of_class > 0)


def matrices(summary: Summary, metrics: Path) -> list[Matrix]:
    """Those of the best student, its control and the teacher, in this order, as far as they were kept."""
    student = summary.best_student or next((row for row in summary.runs if row.role == CONTROL), None)
    models = [(student.run, metrics / "runs" / student.run / "val")] if student else []
    if student and student.control not in (None, student.run):
        models.append((f"{student.control} (control)", metrics / "runs" / student.control / "val"))
    models.append((TEACHER, metrics / "val"))
    found = []
    for label, folder in models:
        try:
            record = ValRecord(folder)
        except FileNotFoundError:
            continue
        found.append(Matrix(label, record.class_names, record.counts_CC))
    return found


def confusion_figure(found: list[Matrix]) -> dict:
    """The matrices as one heat map each, of which the page shows one at a time. Names are escaped for plotly."""
    traces = []
    for number, matrix in enumerate(found):
        names = [escape(name) for name in matrix.names]
        shares = matrix.shares
        traces.append(
            {
                "type": "heatmap",
                "name": escape(matrix.label),
                "visible": number == 0,
                "x": names,
                "y": names,
                "z": [[None if np.isnan(cell) else round(100 * float(cell), 2) for cell in row] for row in shares],
                "text": [[_whole_percent(cell) for cell in row] for row in shares],
                "texttemplate": "%{text}",
                "customdata": matrix.counts.tolist(),
                "hovertemplate": "<b>%{y}</b> called <b>%{x}</b><br>%{z}% of its pixels, "
                "%{customdata:,} px<extra></extra>",
                "zmin": 0,
                "zmax": 100,
                "xgap": 1,
                "ygap": 1,
                "showscale": False,
            }
        )
    layout = {
        "xaxis": {"side": "top", "tickangle": -60} | _CLASS_AXIS,
        "yaxis": {"autorange": "reversed"} | _CLASS_AXIS,
    }
    return {"data": traces, "layout": layout}


def _whole_percent(share: float) -> str:
    """Empty where nothing or next to nothing is: a full page of zeros hides what matters."""
    return "" if np.isnan(share) or share < 0.005 else f"{100 * share:.0f}"


def choice_of_matrix(found: list[Matrix]) -> str:
    """Radio buttons to choose the shown matrix by; none where there is only one."""
    if len(found) < 2:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="matrix" value="{number}"{"" if number else " checked"}>'
        f"<span>{escape(matrix.label)}</span></label>"
        for number, matrix in enumerate(found)
    )
    return f'<fieldset class="choice"><legend>Model</legend>{buttons}</fieldset>'


def mistakes_table(found: list[Matrix]) -> str:
    """The mistakes that cost the best student most pixels, with the share that each model makes of them."""
    if not found:
        return "<p>No confusion matrix was kept.</p>"
    counts = found[0].counts.copy()
    np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:MAX_MISTAKES]
    cells = [divmod(int(place), len(counts)) for place in largest if counts.flat[place]]
    heads = "".join(f'<th scope="col" class="number">{escape(matrix.label)}</th>' for matrix in found)
    rows = "".join(_mistake(found, true, called) for true, called in cells)
    return (
        "<table><caption>The mistakes of the best student that cost most pixels, and what share of the class each "
        "model gets wrong in this way</caption><thead><tr>"
        '<th scope="col">Is</th><th scope="col">Called</th><th scope="col" class="number">Pixels</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _mistake(found: list[Matrix], true: int, called: int) -> str:
    first = found[0]
    shares = "".join(f'<td class="number">{_percent(matrix.shares[true, called])}</td>' for matrix in found)
    return (
        f'<tr><th scope="row">{escape(first.names[true])}</th><td>{escape(first.names[called])}</td>'
        f'<td class="number">{int(first.counts[true, called]):,}</td>{shares}</tr>'
    )


def _percent(share: float) -> str:
    return MISSING if np.isnan(share) else f"{share:.1%}"
