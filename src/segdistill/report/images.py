"""Image strips of the report: the val frames on which the run to ship differs most from its control, by rule."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from segdistill.formats.classes import IGNORE
from segdistill.formats.thumbnails import WIDTH_PX
from segdistill.report.charts import label_of
from segdistill.report.words import signed
from segdistill.results.row import CONTROL, Row
from segdistill.results.summary import Summary
from segdistill.scoring.record import ValRecord

# Different in lightness as well as in hue: RGB of each state of a pixel.
VOID, BOTH, NEITHER, FIRST, SECOND = range(5)
STATE_COLORS = ((0, 0, 0), (236, 238, 242), (139, 145, 156), (31, 95, 191), (240, 160, 48))


class Choice(NamedTuple):
    """A chosen frame: why, its number, and by how much the first model's mIoU on it is above the second's (0..1)."""

    why: str
    frame: int
    gain: float


class Shown(NamedTuple):
    """One image of a strip, as a data address, with its caption and score."""

    caption: str
    score: str
    address: str


class Strip(NamedTuple):
    """The images of one frame below a heading."""

    head: str
    frame: str
    images: list[Shown]


class Strips(NamedTuple):
    """All strips, the legend of their last images, and how they were chosen; or why there are none."""

    strips: list[Strip]
    states: list[tuple[str, tuple[int, int, int]]]
    rule: str


def choose_frames(first: dict[int, float | None], second: dict[int, float | None]) -> list[Choice]:
    """Return the frames of largest, median and smallest difference of the first model to the second in frame mIoU.

    Both are given by frame; a frame without an mIoU is not chosen, and of equal differences the earlier frame is. With
    fewer than three frames, each is chosen once.
    """
    gains = {
        index: mean_iou - other
        for index, mean_iou in sorted(first.items())
        if mean_iou is not None and (other := second.get(index)) is not None
    }
    order = sorted(gains, key=lambda index: -gains[index])  # stable: the earlier of two equal frames comes first
    if not order:
        return []
    smallest = next(index for index in order if gains[index] == gains[order[-1]])
    most, least = gains[order[0]], gains[smallest]
    chosen = [
        ("Largest gain" if most > 0 else "No gain on any frame" if most == 0 else "Smallest loss", order[0]),
        ("Median frame", order[len(order) // 2]),
        ("Largest loss" if least < 0 else "No difference" if least == 0 else "Smallest gain", smallest),
    ]
    shown: list[Choice] = []
    for why, index in chosen:
        if index not in [choice.frame for choice in shown]:
            shown.append(Choice(why, index, gains[index]))
    return shown


def image_strips(summary: Summary, metrics: Path) -> Strips:
    """Return image, truth, teacher, the two compared models and where they differ, for the chosen frames."""
    first, second = summary.shown, summary.compared_with
    if first is None or second is None or first.run == second.run:
        return Strips([], [], "There are no two runs with a score to compare, one of them distilled.")
    try:
        teacher = ValRecord(metrics / "val")
        own, other = (ValRecord(metrics / "runs" / row.run / "val") for row in (first, second))
    except FileNotFoundError:
        return Strips([], [], "No images were kept.")
    choices = choose_frames(own.mean_iou, other.mean_iou)
    if not choices:
        return Strips([], [], "No frame of val is labelled.")
    strips = [_strip(choice, teacher, (first, own), (second, other)) for choice in choices]
    names = ("both right", "both wrong", f"only {first.run} right", f"only {second.run} right")
    states = list(zip(names, (STATE_COLORS[state] for state in (BOTH, NEITHER, FIRST, SECOND)), strict=True))

    what = "the run to ship" if summary.champion else "the most accurate run"
    rule = (
        f"{first.run} is {what}. The frames are chosen by rule: of all {len(own.mean_iou)} frames of val those on "
        f"which the mIoU of {first.run} is furthest above that of {second.run}, at the median, and least above or "
        "furthest below it; of equal ones the first. The mIoU of a frame is the mean over the classes that occur in "
        "it. Both are the finished models in PyTorch, before export. Images are at most "
        f"{WIDTH_PX} pixels wide."
    )
    if first.role == CONTROL:
        rule += f" {first.run} is a control, so it is compared with the best distilled run."
    if first.arch != second.arch:
        rule += f" {second.run} is another network ({second.arch}), so the difference is not that of distilling alone."
    return Strips(strips, states, rule)


def _strip(choice: Choice, teacher: ValRecord, first: tuple[Row, ValRecord], second: tuple[Row, ValRecord]) -> Strip:
    index, (row, own), (other_row, other) = choice.frame, first, second
    images = [
        Shown("image", "", data_address("jpeg", teacher.image(index, "image"))),
        Shown("truth", "", data_address("png", teacher.image(index, "truth"))),
    ]
    for caption, record in (("teacher", teacher), (label_of(other_row), other), (label_of(row), own)):
        mean_iou = record.mean_iou.get(index)
        score = "" if mean_iou is None else f"{mean_iou:.1%}"
        images.append(Shown(caption, score, data_address("png", record.image(index, "classes"))))

    states = pixel_states(teacher.classes(index, "truth"), own.classes(index), other.classes(index))
    shares = ""
    if labelled := np.count_nonzero(states != VOID):
        own_right, other_right = (np.count_nonzero(states == state) / labelled for state in (FIRST, SECOND))
        shares = f"only {row.run} right {own_right:.1%}, only {other_row.run} {other_right:.1%}"
    image, png = Image.fromarray(states), io.BytesIO()
    image.putpalette([value for color in STATE_COLORS for value in color])
    image.save(png, "PNG")
    images.append(Shown("where they differ", shares, data_address("png", png.getvalue())))
    head = f"{choice.why}: {signed(choice.gain)} points of mIoU"
    return Strip(head, f"frame {index}, {own.frame_names[index]}", images)


def pixel_states(truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the index into STATE_COLORS of each pixel, uint8 of the shape of the given class maps."""
    right, other_right = first == truth, second == truth
    conditions = [truth == IGNORE, right & other_right, right, other_right]
    return np.select(conditions, [VOID, BOTH, FIRST, SECOND], default=NEITHER).astype(np.uint8)


def data_address(kind: str, content: bytes) -> str:
    """Return an image in the page itself, as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
