"""Picture strips of the report: the frames on which distilling helped most, as usual, and least.

The frames are chosen by the records of the models (`val_record`), so nobody can choose them by hand.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segdistill.formats.classes import IGNORE
from segdistill.results.summary import Summary
from segdistill.scoring.record import WIDTH_PX, ValRecord

# Told apart by lightness as well as by hue: (name, RGB) of each state of a pixel, void first.
STATES = (
    ("not evaluated", (0, 0, 0)),
    ("both right", (236, 238, 242)),
    ("both wrong", (139, 145, 156)),
    ("only the student right", (31, 95, 191)),
    ("only the control right", (240, 160, 48)),
)
_VOID, _BOTH, _NEITHER, _STUDENT, _CONTROL = range(len(STATES))


class Choice(NamedTuple):
    """A chosen frame: why, its index, and by how much the student's mIoU on it is above the control's (0..1)."""

    why: str
    index: int
    gain: float


def choose_frames(student: dict[int, float | None], control: dict[int, float | None]) -> list[Choice]:
    """The frames of largest, median and smallest gain of the student over the control in the frame's own mIoU.

    Both are given by frame; a frame without an mIoU is not chosen, and of equal gains the earlier frame is. With fewer
    than three frames, each is chosen once.
    """
    gains = {
        index: student[index] - control[index]
        for index in sorted(student)
        if student[index] is not None and control.get(index) is not None
    }
    order = sorted(gains, key=lambda index: -gains[index])  # stable: the earlier of two equal frames stays before
    if not order:
        return []
    smallest = next(index for index in order if gains[index] == gains[order[-1]])
    chosen = {"Largest gain": order[0], "Median gain": order[len(order) // 2], "Smallest gain": smallest}
    shown: list[Choice] = []
    for why, index in chosen.items():
        if index not in [choice.index for choice in shown]:
            shown.append(Choice(why, index, gains[index]))
    return shown


class Strips(NamedTuple):
    """The strips as HTML, and the sentences below them that say what they are and how they were chosen."""

    pictures: str
    rule: str


def picture_strips(summary: Summary, metrics: Path) -> Strips:
    """Image, truth, teacher, control, best student and where the two differ, for the chosen frames."""
    student = summary.best_student
    if student is None or student.control is None:
        return Strips("<p>There is no distilled run with a score to compare with a control.</p>", "")
    try:
        teacher = ValRecord(metrics / "val")
        ours, controls = (ValRecord(metrics / "runs" / run / "val") for run in (student.run, student.control))
    except FileNotFoundError:
        return Strips("<p>No pictures were kept.</p>", "")
    choices = choose_frames(ours.mean_iou, controls.mean_iou)
    frames = [_strip(choice, teacher, (student.control, controls), (student.run, ours)) for choice in choices]
    return Strips("".join(frames) or "<p>No frame of val is labelled.</p>", _rule(summary, len(ours.mean_iou)))


def _rule(summary: Summary, frames: int) -> str:
    student = summary.best_student
    text = (
        f"The frames are chosen by rule, never by hand: of all {frames} frames of val those on which the mIoU of "
        f"{student.run} is furthest above that of {student.control}, at the median, and least above or furthest below "
        "it; of equal ones the first. The mIoU of a frame is the mean over the classes that occur in it. "
        f"Both are the finished students in PyTorch. Pictures are at most {WIDTH_PX} pixels wide."
    )
    other = summary.run(student.control).arch
    if other != student.arch:
        text += f" {student.control} is another network ({other}), so the gain is not that of distilling alone."
    return text


def _strip(choice: Choice, teacher: ValRecord, control: tuple[str, ValRecord], student: tuple[str, ValRecord]) -> str:
    index, (control_run, controls), (run, ours) = choice.index, control, student
    truth = teacher.classes(index, "truth")
    states = pixel_states(truth, ours.classes(index), controls.classes(index))
    shown = [
        _figure("image", "", "jpeg", teacher.image(index, "image")),
        _figure("truth", "", "png", teacher.image(index, "truth")),
        _figure("teacher", _percent(teacher.mean_iou.get(index)), "png", teacher.image(index, "classes")),
        _figure(
            f"{control_run} (control)", _percent(controls.mean_iou[index]), "png", controls.image(index, "classes")
        ),
        _figure(run, _percent(ours.mean_iou[index]), "png", ours.image(index, "classes")),
        _figure("where they differ", _shares(states), "png", _states_png(states)),
    ]
    gain = f"{100 * choice.gain:+.1f}".replace("-", "\N{MINUS SIGN}")
    name = escape(ours.frame_names[index])
    head = f'{choice.why}: {gain} points of mIoU <span class="frame">frame {index}, {name}</span>'
    return f'<h3>{head}</h3><div class="strip">{"".join(shown)}</div>'


def _percent(mean_iou: float | None) -> str:
    return "" if mean_iou is None else f"{mean_iou:.1%}"


def pixel_states(truth: np.ndarray, student: np.ndarray, control: np.ndarray) -> np.ndarray:
    """Index into STATES of each pixel, uint8 of the shape of the given class maps."""
    right, control_right = student == truth, control == truth
    states = np.select(
        [truth == IGNORE, right & control_right, right, control_right],
        [_VOID, _BOTH, _STUDENT, _CONTROL],
        default=_NEITHER,
    )
    return states.astype(np.uint8)


def _shares(states: np.ndarray) -> str:
    valid = np.count_nonzero(states != _VOID)
    if not valid:
        return ""
    alone, other = (np.count_nonzero(states == state) / valid for state in (_STUDENT, _CONTROL))
    return f"student alone {alone:.1%}, control {other:.1%}"


def _states_png(states: np.ndarray) -> bytes:
    picture, stream = Image.fromarray(states), io.BytesIO()
    picture.putpalette([value for _, color in STATES for value in color])
    picture.save(stream, "PNG")
    return stream.getvalue()


def _figure(caption: str, figure: str, kind: str, content: bytes) -> str:
    text = escape(caption)
    data = base64.b64encode(content).decode()
    shown = f"{text} <b>{escape(figure)}</b>" if figure else text
    return f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}"><figcaption>{shown}</figcaption></figure>'


def states_legend() -> str:
    """What the colours of "where they differ" stand for."""
    entries = "".join(
        f'<li><i class="swatch" style="background:rgb({red},{green},{blue})"></i>{escape(name)}</li>'
        for name, (red, green, blue) in STATES[1:]
    )
    return f'<ul class="legend">{entries}</ul>'
