"""What the sweep found, in sentences: which student to ship, and whether distilling earned it."""

from __future__ import annotations

from dataclasses import dataclass

from segdistill.results.champion import RULE, ModelFile
from segdistill.results.row import CONTROL, STUDENT, TEACHER, Row
from segdistill.results.summary import Summary

# Four seeds of one control spanned about this much mIoU in our trials: a smaller gain of one seed is not yet a finding.
NOISE_POINTS = 2.0


@dataclass(frozen=True)
class Answer:
    """`headline` names the file to ship; each of `reasons` is one sentence or two; plain text, nothing escaped."""

    headline: str
    reasons: tuple[str, ...]
    rule: str = RULE


def answer(summary: Summary) -> Answer:
    """The answer to: which student should we ship, and why that one?"""
    champion = summary.champion
    if champion is None:
        return Answer("No student can be recommended", ("No exported file has a defined val mIoU.",))
    row = summary.run(champion.run)
    reasons = [
        f"{champion.path}: {_facts(champion)}.",
        _against_control(summary, champion, row),
        _does_distilling_help(summary),
        _against_teacher(summary, champion, row),
        "The pick was made on the val frames it is scored on, so its own figure flatters it slightly.",
    ]
    return Answer(f"Ship {champion.run} as {champion.precision} ONNX", tuple(filter(None, reasons)))


def _facts(file: ModelFile) -> str:
    facts = [f"val mIoU {file.mean_iou:.1%}"]
    if file.p50_ms is not None:
        facts.append(f"{file.p50_ms:.1f} ms per image (p50, end to end)")
    if file.mb is not None:
        facts.append(f"{file.mb:.1f} MB")
    return ", ".join(facts)


def file_like(summary: Summary, run: str, precision: str) -> ModelFile | None:
    """The file of `run` in `precision`, or else the one it has."""
    own = [file for file in summary.files if file.run == run and file.role != TEACHER and file.mean_iou is not None]
    return next((file for file in own if file.precision == precision), own[0] if own else None)


def both_as(file: ModelFile, other: ModelFile) -> str:
    """In which form two files are compared: "both int8", or the form of each."""
    alike = file.precision == other.precision
    return f"both {file.precision}" if alike else f"{file.precision} against {other.precision}"


def teacher_times(summary: Summary, champion: ModelFile) -> list[tuple[str, float]]:
    """(engine, p50 ms) of the teacher in the form of the champion, and in float32 too where that is another."""
    if summary.teacher is None:
        return []
    found = (summary.teacher.timed(precision) for precision in (champion.precision, "float32"))
    return list(dict.fromkeys(filter(None, found)))


def _against_control(summary: Summary, champion: ModelFile, row: Row) -> str:
    if row.role == CONTROL:
        return f"{row.run} is a control: it was trained without a teacher, so the best choice here owes nothing to one."
    control = file_like(summary, row.control, champion.precision) if row.control else None
    if control is None:
        return "There is no control to compare it with, so nothing shows what the teacher contributed."
    gain_points = 100 * (champion.mean_iou - control.mean_iou)
    against = f"the control {control.run} ({both_as(champion, control)}; trained without a teacher"
    other = summary.run(control.run).arch
    against += ")" if other == row.arch else f", and another network: {other})"
    if gain_points < 0:
        return f"It is {_points(-gain_points)} below {against}: it is picked for its speed, not for its mIoU."
    if gain_points == 0:
        return f"It scores the same as {against}: distilling did not lift its mIoU."
    text = f"It is {_points(gain_points)} above {against}."
    noise_points, measured = _noise(summary)
    if gain_points < noise_points:
        text += (
            f" That is less than the {_points(noise_points)} by which the controls differ among themselves."
            if measured
            else " One seed cannot tell so small a gain from chance: repeat it with other seeds before crediting it."
        )
    return text


def _does_distilling_help(summary: Summary) -> str:
    """Over all runs, on the finetuned weights in PyTorch, as Δ control: what distilling did, not what exporting did."""
    measured = [row for row in summary.runs if row.role == STUDENT and row.gain_over_vanilla is not None]
    fair = [row for row in measured if summary.run(row.control).arch == row.arch]
    if not fair:
        return (
            "No distilled run has a control of its own network, so the sweep cannot tell whether distilling helps."
            if any(row.role == STUDENT for row in summary.runs)
            else "No run of this sweep was distilled."
        )
    ahead = sum(row.gain_over_vanilla > 0 for row in fair)
    best = max(fair, key=lambda row: row.gain_over_vanilla)
    gain = f"{best.run} with {_signed_points(best.gain_over_vanilla)}"
    if len(fair) > 1:
        gain += f"; all {len(fair)} on average {_signed_points(sum(row.gain_over_vanilla for row in fair) / len(fair))}"
    runs = f"{len(fair)} distilled run{'s' if len(fair) > 1 else ''} with a control of the same network"
    if not ahead:
        return f"Distilling did not help in this sweep: of {runs}, none ends above it in PyTorch (nearest: {gain})."
    return f"Of {runs}, {ahead} end{'s' if ahead == 1 else ''} above it in PyTorch (best: {gain})."


def _against_teacher(summary: Summary, champion: ModelFile, row: Row) -> str:
    teacher = summary.teacher
    if teacher is None or not teacher.mean_iou:
        return ""
    if champion.mean_iou > teacher.mean_iou:
        text = f"It scores higher than the teacher ({teacher.mean_iou:.1%}), which is too weak to learn much from"
    else:
        text = f"It keeps {champion.mean_iou / teacher.mean_iou:.0%} of the teacher's mIoU ({teacher.mean_iou:.1%})"
    facts = []
    if row.parameters and teacher.parameters:
        facts.append(f"has {_share(row.parameters / teacher.parameters)} of its parameters")
    if champion.p50_ms and (times := teacher_times(summary, champion)):
        ratios = (f"{ms / champion.p50_ms:.1f} times as fast as the teacher in {engine}" for engine, ms in times)
        facts.append(f"is {' and '.join(ratios)}")
    return text + (f"; it {' and '.join(facts)}." if facts else ".")


def _noise(summary: Summary) -> tuple[float, bool]:
    """Points of mIoU by which chance moves a result, and whether controls that differ by seed alone measured it."""
    groups: dict[tuple, dict[int | None, float]] = {}
    for row in summary.runs:
        if row.role == CONTROL and row.mean_iou is not None:
            setting = (row.arch, row.lr, row.label_loss, row.schedule, row.steps, row.finetune_steps)
            groups.setdefault(setting, {})[row.seed] = 100 * row.mean_iou
    spreads = [max(scores.values()) - min(scores.values()) for scores in groups.values() if len(scores) > 1]
    return (max(spreads), True) if spreads else (NOISE_POINTS, False)


def _share(ratio: float) -> str:
    return f"{ratio:.0%}" if ratio >= 0.1 else f"{ratio:.1%}"


def _points(points: float) -> str:
    return f"{points:.1f} points" if points >= 0.1 else f"{points:.2f} points"


def _signed_points(gain: float) -> str:
    text = f"{100 * gain:+.1f} points" if abs(gain) >= 0.001 else f"{100 * gain:+.2f} points"
    return text.replace("-", "\N{MINUS SIGN}")
