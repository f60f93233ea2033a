"""The tables, tiles and terms of the report as plain data; `templates/` turns them into HTML and escapes every text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import yaml

from segdistill.core.provenance import git_revision
from segdistill.params.model import DistillParams, TeacherParams
from segdistill.report.charts import Matrix
from segdistill.report.words import (
    both_as,
    file_like,
    finetuning_lost,
    on_unseen,
    signed,
    spaced,
    teacher_times,
    with_interval,
)
from segdistill.results.row import CONTROL, GAIN, MISSING, TEACHER, UNSEEN_GAIN, Metric
from segdistill.results.summary import Summary

MAX_MISTAKES = 8
NOT_EVALUATED = (0, 0, 0)  # the colour of void in class maps
# Where a term of the benchmark could be taken for one of the training.
_LATENCY_TERMS = {"size_px": "timed frames, px", "frames": "timed rounds", "batch": "timed batch"}
VERDICTS = {
    "helped": "helped",
    "hurt": "hurt",
    "no difference": "cannot tell: the interval holds 0",
    "one seed": "cannot tell: one seed",
    "other recipe": "cannot tell: the control has another recipe",
}


class Cell(NamedTuple):
    """A cell of a table: `value` is sorted by, `title` is shown on hover."""

    text: str
    kind: str = "text"  # text or number, and further CSS classes
    value: object = ""
    title: str = ""


class Line(NamedTuple):
    """A line of a table: its name, labels next to the name, CSS classes and cells."""

    name: str
    badges: tuple[str, ...]
    kind: str
    cells: list[Cell]


class Table(NamedTuple):
    """A table whose first column names the lines."""

    heads: list[Cell]
    lines: list[Line]


class Tile(NamedTuple):
    """A number at the top of the report, and what it is to be compared with."""

    name: str
    number: str
    against: str


def runs_table(summary: Summary, columns: Sequence[Metric]) -> Table:
    """Return all models with the declared settings and metrics of `columns`."""
    heads = [Cell("Run", "text", title="name in params.yaml")]
    heads += [Cell(one.label, "number" if one.form else "text", title=one.meaning) for one in columns]
    lines = []
    for row in summary.rows:
        cells = []
        for one in columns:
            value, kind, title = getattr(row, one.name), "number" if one.form else "text", ""
            if one.name in (GAIN, UNSEEN_GAIN) and row.control:
                if row.run == row.control:
                    value = None  # the difference of a control to itself is no result
                title = f"against {row.control}"
                # Coloured only where several seeds tell it from chance, and claims rest on it.
                setting = summary.setting_of(row.run)
                gain = setting.unseen_gain if one.name == UNSEEN_GAIN else setting.gain
                verdict = gain.verdict if gain and gain is setting.claim else ""
                kind += {"helped": " gain", "hurt": " loss"}.get(verdict, "")
            if one.name == "mean_iou" and finetuning_lost(row):
                kind, title = f"{kind} loss", f"finetuning lowered it from {row.distilled_mean_iou:.2%}"
            if value is None:
                cells.append(Cell(MISSING, f"{'number' if one.form else 'text'} none"))
            else:
                cells.append(Cell(one.text(value), kind, value, title))
        is_picked = summary.champion is not None and row.run == summary.champion.run
        badges = [CONTROL] * (row.role == CONTROL) + ["ship"] * is_picked + ["stale"] * row.is_stale
        lines.append(Line(row.run, tuple(badges), f"{row.role} {'champion' if is_picked else ''}".strip(), cells))
    return Table(heads, lines)


def settings_table(summary: Summary) -> Table:
    """Return a line per setting, its runs over several seeds put together."""
    heads = [
        Cell("Setting", title="runs that differ by seed alone"),
        Cell("Seeds", "number"),
        Cell("mIoU, mean", "number", title="of the finished models, in PyTorch"),
        Cell("Spread", "number", title="standard deviation over seeds, in points"),
        Cell("Δ control", "number", title="points of mIoU above the controls of the same seeds"),
        Cell("95% interval", "number", title="over seeds and groups of val frames"),
    ]
    has_unseen = any(one.unseen_gain for one in summary.settings)
    if has_unseen:
        heads.append(Cell("Δ unseen", "number", title="the same on the drives that are in no other split"))
        heads.append(Cell("95% interval", "number", title="over seeds and unseen drives"))
    heads.append(Cell("Distilling", title="on the unseen drives" if has_unseen else "on val"))
    lines = []
    for one in summary.settings:
        mean_iou, spread, claim = one.mean_iou, one.spread, one.claim
        missing = Cell(MISSING, "number none")
        cells = [Cell(str(one.seeds), "number", one.seeds)]
        cells.append(missing if mean_iou is None else Cell(f"{mean_iou:.2%}", "number", mean_iou))
        cells.append(missing if spread is None else Cell(f"{100 * spread:.2f}", "number", spread))
        for gain in (one.gain, one.unseen_gain) if has_unseen else (one.gain,):
            cells.append(missing if gain is None else Cell(signed(gain.mean), "number", gain.mean))
            if gain is None or gain.low is None or gain.high is None:
                cells.append(missing)
            else:
                bounds = f"{signed(gain.low)} to {signed(gain.high)}"
                cells.append(Cell(bounds, "number", gain.low, with_interval(gain)))
        if one.role == CONTROL:
            cells.append(Cell("control", "text none"))
        elif claim is None:
            cells.append(Cell("no control of its network", "text none"))
        else:
            kind = {"helped": "text gain", "hurt": "text loss"}.get(claim.verdict, "text")
            cells.append(Cell(VERDICTS[claim.verdict], kind, title=claim.other_recipe))
        members = ", ".join(row.run for row in one.rows)
        lines.append(Line(one.name, (members,) if members != one.name else (), one.role, cells))
    return Table(heads, lines)


def networks_table(summary: Summary) -> Table:
    """Return the latency of every network on every backend, forward pass and end to end."""
    columns = [(f"{what}_{name}_ms", ".2f") for what in ("forward", "end_to_end") for name in ("p50", "p95")]
    columns.append(("end_to_end_total_ms", ",.0f"))
    heads = ("Forward p50", "Forward p95", "End to end p50", "End to end p95", "All frames")
    lines = []
    for network, backends in summary.benchmark.get("networks", {}).items():
        for backend, timed in backends.items():
            name = f"{backend} ({timed['how']})" if "how" in timed else backend
            values = [timed.get(key) for key, _ in columns]
            texts = [MISSING if v is None else format(v, form) for v, (_, form) in zip(values, columns, strict=True)]
            lines.append(Line(network, (), "", [Cell(name), *(Cell(text, "number") for text in texts)]))
    return Table([Cell("Network"), Cell("Backend"), *(Cell(head, "number") for head in heads)], lines)


def class_heat(summary: Summary) -> dict[str, Any]:
    """Return IoU by class and model: name and colour of each class, and for each model the shares to be coloured.

    The best student of a class is marked, unless its IoU rounds to 0. Without class maps there are no colours.
    """
    names: list[str] = next((list(row.class_iou) for row in summary.rows if row.class_iou), [])
    best = {name: max(filter(None, (row.class_iou.get(name) for row in summary.runs)), default=1) for name in names}
    lines = []
    for row in summary.rows:
        ious = [(row.class_iou.get(name), best[name]) for name in names]
        marked = [(iou, row.role != TEACHER and iou is not None and iou == top and iou >= 0.005) for iou, top in ious]
        lines.append({"run": row.run, "role": row.role, "mean": row.mean_iou, "ious": marked})
    classes = [{"name": spaced(name), "color": summary.class_colors.get(name)} for name in names]
    return {"classes": classes, "lines": lines}


def tiles(summary: Summary) -> list[Tile]:
    """Return mIoU, latency, size and distance to the teacher of the champion; what is not known is left out."""
    champion, teacher = summary.champion, summary.teacher
    if champion is None:
        return []
    row = summary.run(champion.run)
    control = file_like(summary, row.control, champion.precision) if row.control else None
    if row.role == CONTROL:
        against = "a control, trained without a teacher"
    elif control is None:
        against = "no control to compare with"
    else:
        points, gain = signed(champion.score - control.score), summary.setting_of(row.run).claim
        against = f"{points} points against {control.run} ({both_as(champion, control)})"
        if gain is not None and gain.other_recipe:
            against += ", which has another recipe"
        else:
            against += "; one seed cannot tell this from chance" if gain is None or gain.low is None else ""
    against = "; ".join(filter(None, [against, on_unseen(champion, row)]))
    found = [Tile(f"val mIoU, {champion.precision} ONNX", f"{champion.score:.1%}", against)]

    if champion.p50_ms is not None:
        timed = summary.benchmark.get("conditions", {})
        size, threads = timed.get("size_px"), timed.get("threads")
        name = f"p50 per {size[0]}x{size[1]} frame" if size else "p50 per frame"
        name += "" if threads is None else f", {threads} thread{'s' if threads != 1 else ''}"
        times = ", ".join(f"{p50_ms:.1f} ms in {engine}" for engine, p50_ms in teacher_times(summary, champion))
        against = "end to end" + (f"; the teacher: {times}" if times else "")
        against = "not reliable: busy machine" if summary.busy else against
        found.append(Tile(name, f"{champion.p50_ms:.1f} ms", against))

    if champion.mb is not None:
        share = ""
        if row.parameters and teacher is not None and teacher.parameters:
            share = f"{row.parameters / teacher.parameters:.0%} of the teacher's parameters"
        found.append(Tile(f"{champion.precision} ONNX file", f"{champion.mb:.1f} MB", share))

    if teacher is not None and teacher.mean_iou is not None:
        against = f"which has {teacher.mean_iou:.1%}, not quantized"
        if row.teacher_agreement is not None:
            against += f"; the same class on {row.teacher_agreement:.0%} of pixels"
        found.append(Tile("mIoU against the teacher", f"{signed(champion.score - teacher.mean_iou)} points", against))
    return found


def conditions(summary: Summary) -> list[tuple[str, str]]:
    """Return what the models were trained and scored on and how latency was measured, as terms and their values."""
    known: dict[str, object] = {}
    if summary.params is not None:
        data, teacher, params = summary.params.data, summary.params.teacher, summary.params
        given = " + ".join(teacher.checkpoints)
        trained = f"from {given}" if given else f"trained here: {_steps(teacher)}"
        further = f"{params.finetune.steps:,} to finetune, where a run says nothing else"
        known = {
            "data": data.source,
            "frames resized to": data.size_px or "not at all",
            **({"unseen drives": ", ".join(data.unseen_groups)} if data.unseen_groups else {}),
            "teacher": f"{teacher.described}, {trained}",
            "students": f"{_steps(params.distill)}, and {further}",
        }
    seeds = sorted({row.seed for row in summary.rows if row.seed is not None})
    known |= {"seeds": ", ".join(map(str, seeds)) or MISSING, "git revision": git_revision()}
    known |= {_LATENCY_TERMS.get(name, name): value for name, value in summary.benchmark.get("conditions", {}).items()}
    return [(spaced(name), _as_text(value)) for name, value in known.items()]


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _steps(section: TeacherParams | DistillParams) -> str:
    crop = "x".join(map(str, section.crop_px))
    return f"{section.steps:,} steps of {section.batch_size} crops of {crop}, from {section.init} weights"


def params_text(summary: Summary) -> str:
    """Return params.yaml of the sweep without `tracking`, which no metric depends on and which may name a server."""
    if summary.params is None:
        return ""
    settings = summary.params.model_dump(mode="json", exclude={"tracking"}, exclude_unset=True)
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)


def settings_note(summary: Summary) -> str:
    """Return how to read the table of settings, and what limits it in this sweep."""
    text = (
        "Runs that differ by seed alone are one setting. Δ control is the mean over seeds of the difference to the "
        "control of the same seed, in PyTorch. A setting helped where the 95% interval is above 0."
    )
    groups = summary.val_groups
    if groups.unseen:
        text += f" It rests on the unseen drives ({groups.unseen}), which are in no other split; val is there too."
    if all(one.gain is None or one.gain.low is None for one in summary.settings):
        return f"{text} No setting of this sweep has several seeds with a control each, so it cannot tell."
    if groups.count == 1:
        text += " All val frames are of one city or recording, so the intervals on val say nothing about other places."
    elif groups.count == 2:
        text += " Val has two cities or recordings, too few to show how such places differ."
    elif groups.count:
        text += f" The intervals cover the seeds and the {groups.count} cities or recordings of val."
    if groups.in_train:
        text += f" Train has frames of {groups.in_train} of them, so new places may differ more."
    return text


def mistakes_table(found: list[Matrix]) -> Table | None:
    """Return the mistakes that cost the first model most pixels, with the share that each model makes of them."""
    if not found:
        return None
    first, counts = found[0], found[0].counts.copy()
    np.fill_diagonal(counts, 0)
    largest = [int(place) for place in np.argsort(-counts, axis=None, kind="stable")[:MAX_MISTAKES]]
    heads = ["Is", "Predicted as", "Pixels", *(matrix.label for matrix in found)]
    lines = []
    for true, predicted in (divmod(place, len(counts)) for place in largest if counts.flat[place]):
        shares = [matrix.shares[true, predicted] for matrix in found]
        cells = [Cell(first.names[predicted]), Cell(f"{int(counts[true, predicted]):,}", "number")]
        cells += [Cell(MISSING if np.isnan(share) else f"{share:.1%}", "number") for share in shares]
        lines.append(Line(first.names[true], (), "", cells))
    return Table([Cell(head, "text" if number < 2 else "number") for number, head in enumerate(heads)], lines)
