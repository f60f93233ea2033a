"""What the sweep found, in sentences: which student to ship, and whether distilling helped."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

from segdistill.results.champion import ModelFile
from segdistill.results.gains import Gain, Setting
from segdistill.results.row import CONTROL, MINUS, STUDENT, TEACHER, Row
from segdistill.results.stale import stale_sentence
from segdistill.results.summary import Summary
from segdistill.results.teaching import compare_classes, strongest_control

MAX_NAMED = 8  # classes in a sentence


@dataclass(frozen=True)
class Answer:
    """`headline` names the file to ship; each of `reasons` is one or two sentences; plain text, nothing escaped."""

    headline: str
    reasons: tuple[str, ...]
    rule: str


def answer(summary: Summary) -> Answer:
    """Return the answer to: which student should we ship, and why that one?"""
    champion, unfinished = summary.champion, summary.unfinished
    if unfinished:
        total = len({*unfinished, *(row.run for row in summary.runs)})
        headline = f"Not finished: {len(unfinished)} of {total} students"
        named = ", ".join(unfinished[:MAX_NAMED]) + (" and others" if len(unfinished) > MAX_NAMED else "")
        reasons = [f"dvc repro has still to train, export or time {named}; then it is known which one to ship."]
    elif champion is None:
        headline = "Nothing to ship yet"
        scored = [file for file in summary.files if file.role != TEACHER and file.mean_iou is not None]
        if scored:
            best = max(scored, key=lambda file: file.score)
            reasons = [
                f"The best file, {best.path}, has a val mIoU of {best.score:.1%}; a file to ship needs at least "
                f"{summary.floor.mean_iou:.1%} ({summary.floor.reason}). Train longer, or on more data."
            ]
        else:
            reasons = ["No exported file has a defined val mIoU."]
    else:
        headline, row = f"Ship {champion.run} as {champion.precision} ONNX", summary.run(champion.run)
        facts = [f"val mIoU {champion.score:.1%}"]
        facts += filter(None, [on_unseen(champion, row)])
        facts += [] if champion.p50_ms is None else [f"{champion.p50_ms:.1f} ms per image (p50, end to end)"]
        facts += [] if champion.mb is None else [f"{champion.mb:.1f} MB"]
        reasons = [f"{champion.path}: {', '.join(facts)}.", _against_control(summary, champion, row)]
        if row.role == STUDENT:
            reasons.append(claim(summary, summary.setting_of(row.run)))
        reasons.append(_against_teacher(summary, champion, row))
        reasons.append("" if summary.busy else _on_openvino(champion, row))
    reasons += [over_all_settings(summary), nothing_to_learn(summary), _finetuning(summary), *_quantising(summary)]
    if summary.busy:
        reasons.append(f"Do not rely on the latencies: {summary.busy}.")
    if champion is not None:
        reasons.append("The pick was made on the val frames, so its mIoU there is slightly too high.")
    if stale := stale_sentence([row.run for row in summary.rows if row.is_stale]):
        reasons.append(f"Stale: {stale}.")
    return Answer(headline, tuple(filter(None, reasons)), summary.rule)


def file_like(summary: Summary, run: str, precision: str) -> ModelFile | None:
    """Return the file of `run` in `precision`, or else the one it has."""
    own = [file for file in summary.files if file.run == run and file.role != TEACHER and file.mean_iou is not None]
    return next((file for file in own if file.precision == precision), own[0] if own else None)


def both_as(file: ModelFile, other: ModelFile) -> str:
    """Return in which form two files are compared: "both int8", or the form of each."""
    alike = file.precision == other.precision
    return f"both {file.precision}" if alike else f"{file.precision} against {other.precision}"


def on_unseen(file: ModelFile, row: Row) -> str:
    """Return the mIoU of an int8 file on the unseen drives, in words; "" where it was not scored there."""
    if file.precision != "int8" or row.int8_unseen_mean_iou is None:
        return ""
    return f"mIoU {row.int8_unseen_mean_iou:.1%} on the unseen drives"


def teacher_times(summary: Summary, champion: ModelFile) -> list[tuple[str, float]]:
    """Return (engine, p50 ms) of the teacher in the form of the champion, and in float32 if that is another."""
    if summary.teacher is None:
        return []
    found = (summary.teacher.timed(precision) for precision in (champion.precision, "float32"))
    return list(dict.fromkeys(filter(None, found)))


def _against_control(summary: Summary, champion: ModelFile, row: Row) -> str:
    if row.role == CONTROL:
        return f"{row.run} is a control: it was trained without a teacher, so this pick is no result of distilling."
    control = file_like(summary, row.control, champion.precision) if row.control else None
    if control is None:
        return "There is no control to compare it with, so nothing shows what the teacher contributed."
    points = 100 * (champion.score - control.score)
    size = f"{abs(points):.1f} points" if abs(points) >= 0.1 else f"{abs(points):.2f} points"
    distance = f"It is {size} {'above' if points > 0 else 'below'}" if points else "It scores the same as"
    other = summary.run(control.run).arch
    network = "" if other == row.arch else f", and another network: {other}"
    picked = " It is picked for its speed, not for its mIoU." if points < 0 else ""
    form = both_as(champion, control)
    return f"{distance} the control {control.run} ({form}; trained without a teacher{network}).{picked}"


def claim(summary: Summary, setting: Setting) -> str:
    """Return what the seeds of a setting say about distilling, with what limits it."""
    gain, groups = setting.claim, summary.val_groups
    if gain is None:
        return "It has no control of its own network, so the sweep cannot tell whether distilling helped it."
    if gain.other_recipe:
        control = next(row.control for row in setting.rows if row.control)
        where = "on unseen drives " if setting.unseen_gain else ""
        return (
            f"The sweep cannot tell whether distilling helped {setting.name}: its control {control} was trained by "
            f"another recipe ({gain.other_recipe}), so the gain in PyTorch {where}({with_interval(gain)}) is that of "
            "teacher and recipe together. A control with the same keys tells them apart."
        )
    if gain.low is None:
        where = "on unseen drives " if setting.unseen_gain else ""
        return (
            f"One seed cannot tell distilling from chance (gain in PyTorch {where}{signed(gain.mean)} points): train "
            f"{setting.name} and its control with at least two more seeds, by seeds in params.yaml."
        )
    start = {
        "helped": "Distilling helped:",
        "hurt": "Distilling hurt:",
        "no difference": "It is not shown that distilling helped:",
    }[gain.verdict]
    # What the interval does not cover limits the claim.
    if setting.unseen_gain:
        found = f"the gain on unseen drives, in PyTorch, is {with_interval(gain)}"
        found += f"; on val it is {with_interval(setting.gain)}" if setting.gain else ""
        limits = covered(gain, groups.unseen, "The claim rests on one unseen drive", "unseen drives")
    else:
        found = f"the gain in PyTorch is {with_interval(gain)}"
        one = "All val frames are of one city or recording"
        limits = covered(gain, groups.count, one, "cities or recordings of val")
        if groups.in_train:
            of = f"{groups.in_train} of the {groups.count} cities or recordings of val"
            limits += f" Train has frames of {of}: on new places the gain may be smaller."
    return f"{start} over {gain.seeds} seeds {found}. {limits}"


def covered(gain: Gain, groups: int | None, one: str, many: str) -> str:
    """Return what the interval of a gain covers, and what it does not: `groups` cities or drives were scored."""
    if groups == 1:
        stretches = f", of which the interval covers {gain.groups} stretches" if gain.groups > 1 else ""
        return f"{one}{stretches}, so this says nothing about other places."
    if gain.groups < 2:
        return "The interval is over seeds alone: the metrics do not say which frames belong together."
    if groups is not None and gain.groups > groups:
        few = f"{gain.groups} stretches of the {groups} {many}, which are too few to show how such places differ"
        return f"The interval covers seeds and {few}."
    return f"The interval covers seeds and the {gain.groups} {many}."


def with_interval(gain: Gain) -> str:
    """Return the mean gain and its interval in points."""
    if gain.low is None or gain.high is None:
        return f"{signed(gain.mean)} points"
    return f"{signed(gain.mean)} points, 95% interval {signed(gain.low)} to {signed(gain.high)}"


def over_all_settings(summary: Summary) -> str:
    """Return how many settings are above their controls, in PyTorch, and how many of these beyond chance."""
    students = [one for one in summary.settings if one.role == STUDENT]
    if not students:
        return "No run of this sweep was distilled."
    if not any(one.claim for one in students):
        return "No distilled run has a control of its own network, so the sweep cannot tell whether distilling helps."
    gains = {one.name: one.claim for one in students if one.claim is not None and not one.claim.other_recipe}
    if not gains:
        return "No distilled run has a control of its own recipe, so the sweep cannot tell whether distilling helps."
    if len(gains) == 1:
        (setting,) = (one for one in students if one.name in gains)
        # The answer has the claim of the champion's setting already.
        is_said = summary.champion is not None and summary.champion.run in [row.run for row in setting.rows]
        return "" if is_said else f"{setting.name}: {claim(summary, setting)}"
    best = max(gains, key=lambda name: gains[name].mean)
    of_all = mean(gain.mean for gain in gains.values())
    ahead = sum(gain.mean > 0 for gain in gains.values())
    where = "on the unseen drives in" if any(one.unseen_gain for one in students) else "in"
    text = (
        f"Of {len(gains)} distilled settings with a control of their network and recipe, {ahead} {_are(ahead)} above "
        f"it {where} PyTorch (best: {best} with {signed(gains[best].mean)} points; mean of all {signed(of_all)} points)"
    )
    repeated = [gain for gain in gains.values() if gain.low is not None]
    if not repeated:
        return f"{text}; with one seed of each, nothing tells any of this from chance."
    better, worse = (sum(gain.verdict == verdict for gain in repeated) for verdict in ("helped", "hurt"))
    text += f"; beyond chance {better} {_are(better)} above and {worse} below, of {len(repeated)} with several seeds."
    return text + " Each interval is of 95%: of 20 settings without effect one is expected to miss 0."


def _against_teacher(summary: Summary, champion: ModelFile, row: Row) -> str:
    teacher = summary.teacher
    if teacher is None or not teacher.mean_iou:
        return ""
    if champion.score > teacher.mean_iou:
        text = f"It scores higher than the teacher ({teacher.mean_iou:.1%}), which is too weak to learn much from"
    else:
        text = f"It keeps {champion.score / teacher.mean_iou:.0%} of the teacher's mIoU ({teacher.mean_iou:.1%})"
    facts = []
    if row.parameters and teacher.parameters:
        ratio = row.parameters / teacher.parameters
        facts.append(f"has {ratio:{'.0%' if ratio >= 0.1 else '.1%'}} of its parameters")
    if champion.p50_ms and not summary.busy and (times := teacher_times(summary, champion)):
        ratios = (f"{ms / champion.p50_ms:.1f} times as fast as the teacher in {engine}" for engine, ms in times)
        facts.append(f"is {' and '.join(ratios)}")
    return text + (f"; it {' and '.join(facts)}." if facts else ".")


def _on_openvino(champion: ModelFile, row: Row) -> str:
    """Return how much faster OpenVINO runs the champion's file, at its fastest; empty where it was not or is slower."""
    ways = {"int8": row.openvino_int8_p50_ms}
    if champion.precision == "float32":
        ways = {"float32": row.openvino_float32_p50_ms, "bfloat16": row.openvino_bfloat16_p50_ms}
    measured = {way: p50_ms for way, p50_ms in ways.items() if p50_ms is not None}
    way = min(measured, key=lambda name: measured[name], default=None)
    if way is None or champion.p50_ms is None or champion.p50_ms <= measured[way]:
        return ""
    timed = row.files.get("latency", {}).get(f"openvino_{way}", {})
    agrees = timed.get("agreement_with_onnxruntime")
    computing = " in bfloat16" if way == "bfloat16" else ""
    text = (
        f"OpenVINO runs the same file{computing} {champion.p50_ms / measured[way]:.1f} times as fast as onnxruntime "
        f"({measured[way]:.1f} against {champion.p50_ms:.1f} ms)"
    )
    text += "" if agrees is None else f" and names the same class on {agrees:.1%} of the pixels"
    return f"{text}; pick and mIoU are of onnxruntime."


def nothing_to_learn(summary: Summary) -> str:
    """Return where the teacher is not above the control: in all, on the unseen drives, by class; "" for nowhere."""
    classes, control, teacher = compare_classes(summary), strongest_control(summary), summary.teacher
    if control is None or control.mean_iou is None or teacher is None or teacher.mean_iou is None:
        return ""
    below = [one.name for one in classes if one.below]
    text = ""
    if teacher.mean_iou <= control.mean_iou:
        scores = f"val mIoU {teacher.mean_iou:.1%} against {control.mean_iou:.1%}"
        text = f"The teacher is not stronger than the control {control.name} ({scores}). "
    unseen = [row.unseen_mean_iou for row in control.rows if row.unseen_mean_iou is not None]
    if teacher.unseen_mean_iou is not None and unseen and teacher.unseen_mean_iou <= mean(unseen):
        scores = f"mIoU {teacher.unseen_mean_iou:.1%} against {mean(unseen):.1%}"
        text += f"On the unseen drives the teacher is not stronger than {control.name} ({scores}). "
    if below:
        text += f"There is nothing to learn on {len(below)} of {len(classes)} classes, on which the teacher is below "
        text += f"the control {control.name} on val: {_listed(below)}."
    if on_views := [one.name for one in classes if one.below_on_views]:
        text += f" On the views, too, the teacher is below what the control has on val: {_listed(on_views)}."
    return text.strip()


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(spaced, names[:MAX_NAMED]))
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def finetuning_lost(row: Row) -> bool:
    """Return whether the further steps lowered val mIoU."""
    if row.distilled_mean_iou is None or row.mean_iou is None or not row.finetune_steps:
        return False
    return row.mean_iou < row.distilled_mean_iou


def _finetuning(summary: Summary) -> str:
    lost = [row for row in summary.runs if finetuning_lost(row)]
    if not lost:
        return ""
    first = next((row for row in lost if summary.shown is row), None)
    worst = first or max(lost, key=lambda row: (row.distilled_mean_iou or 0.0) - (row.mean_iou or 0.0))
    which = f"{worst.run}{'' if len(lost) == 1 or first else ' most'}"
    return (
        f"Finetuning lowered val mIoU in {len(lost)} of {len(summary.runs)} runs: {which}, from "
        f"{worst.distilled_mean_iou:.1%} to {worst.mean_iou:.1%}. The exported file is the finetuned one."
    )


def _quantising(summary: Summary) -> list[str]:
    """Return a sentence for each int8 file that min-max ranges did not bring within the bound."""
    sentences = []
    for row in summary.runs:
        found = row.files.get("export", {}).get("quantisation", {})
        if len(found.get("tries", ())) < 2:
            continue
        layers = len(found["float_layers"])
        # Losses are in points. A file may gain, too.
        change, first = (signed(-loss / 100) for loss in (found["holdout_loss"], found["tries"][0]["holdout_loss"]))
        way = f"{layers} {'layers' if layers > 1 else 'layer'} left in float32" if layers else found["gate"]
        is_within = found["holdout_loss"] <= found["max_int8_loss"]
        end = "" if is_within else f", more than export.max_int8_loss allows ({found['max_int8_loss']:g})"
        sentences.append(
            f"On the holdout the int8 file of {row.run} is at {change} points of mIoU against float32, with {way} "
            f"(min-max: {first}){end}."
        )
    return sentences


def signed(gain: float) -> str:
    """Return a fraction in points with its sign, a true minus among them: +0.3, −1.1."""
    return f"{100 * gain:{'+.1f' if abs(gain) >= 0.0005 or gain == 0 else '+.2f'}}".replace("-", MINUS)


def spaced(name: str) -> str:
    """Return a key of class_iou or of the benchmark as a reader writes it."""
    return name.replace("_", " ")


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
