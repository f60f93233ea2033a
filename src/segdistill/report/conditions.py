"""The conditions of the figures, as HTML: what was trained and timed how, and the params to do it again with."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

import yaml

from segdistill.core.provenance import git_revision
from segdistill.params.model import DistillParams, Params, TeacherParams
from segdistill.report.tables import MISSING, spaced
from segdistill.results.summary import Summary

# Where a term of the benchmark could be taken for one of the training.
_LATENCY_TERMS = {"size_px": "timed frames, px", "frames": "timed rounds", "batch": "timed batch"}


def conditions_list(summary: Summary) -> str:
    """What the models were trained and scored on, and how latency was measured, as terms and their values."""
    seeds = sorted({row.seed for row in summary.rows if row.seed is not None})
    known = {} if summary.params is None else _training(summary.params)
    known |= {"seeds": ", ".join(map(str, seeds)) or MISSING, "git revision": git_revision()}
    known |= {_LATENCY_TERMS.get(name, name): value for name, value in summary.benchmark.get("conditions", {}).items()}
    terms = [f"<dt>{escape(spaced(name))}</dt><dd>{escape(_said(value))}</dd>" for name, value in known.items()]
    return f'<dl class="terms">{"".join(terms)}</dl>'


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _training(params: Params) -> dict[str, object]:
    teacher, distill = params.teacher, params.distill
    given = " + ".join(teacher.checkpoints)
    return {
        "data": params.data.source,
        "frames resized to": params.data.size_px or "not at all",
        "teacher": f"{teacher.described}, {f'from {given}' if given else f'trained here: {_steps(teacher)}'}",
        "students": f"{_steps(distill)}, and {params.finetune.steps:,} to finetune, where a run says nothing else",
    }


def _steps(section: TeacherParams | DistillParams) -> str:
    crop = "x".join(map(str, section.crop_px))
    return f"{section.steps:,} steps of {section.batch_size} crops of {crop}, from {section.init} weights"


def params_text(summary: Summary) -> str:
    """params.yaml of the sweep but for `tracking`, which no figure depends on and which may name a server."""
    if summary.params is None:
        return ""
    settings = summary.params.model_dump(mode="json", exclude={"tracking"}, exclude_unset=True)
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)
    return f"<details><summary>params.yaml, but for tracking</summary><pre>{escape(text)}</pre></details>"


def networks_table(summary: Summary) -> str:
    """Latency of every distinct network on every backend, forward pass and end to end."""
    figures = [(f"{what}_{name}_ms", ".2f") for what in ("forward", "end_to_end") for name in ("p50", "p95")]
    figures.append(("end_to_end_total_ms", ",.0f"))
    heads = ("Network", "Backend", "Forward p50", "Forward p95", "End to end p50", "End to end p95", "All frames")
    rows = []
    for network, backends in summary.benchmark.get("networks", {}).items():
        for backend, timed in backends.items():
            name = f"{backend} ({timed['how']})" if "how" in timed else backend
            texts = [_form(timed.get(key), form) for key, form in figures]
            rows.append(_plain_row([network, name], texts))
    head = "".join(
        f'<th scope="col" class="{"number" if number > 1 else "text"}">{escape(text)}</th>'
        for number, text in enumerate(heads)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _form(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _plain_row(texts: Iterable[str], numbers: Iterable[str]) -> str:
    cells = [f'<td class="text">{escape(text)}</td>' for text in texts]
    cells += [f'<td class="number">{escape(text)}</td>' for text in numbers]
    return f"<tr>{''.join(cells)}</tr>"
