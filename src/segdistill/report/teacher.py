"""What the teacher can teach: its IoU next to the control's, by class, and the train labels that it doubts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from segdistill.report.images import Shown, Strip, data_address
from segdistill.report.sections import Cell, Line, Table
from segdistill.report.words import nothing_to_learn, signed, spaced
from segdistill.results.row import MISSING
from segdistill.results.summary import Summary
from segdistill.results.teaching import compare_classes, learned_from, strongest_control


class TeacherPart(NamedTuple):
    """The section of the report: sentences, a table by class, and the frames whose labels the teacher doubts most."""

    notes: list[str]
    classes: Table | None
    doubted: list[Strip]


def teacher_part(summary: Summary, metrics: Path) -> TeacherPart:
    """Return the section of the report about the teacher."""
    measured, notes = learned_from(summary), []
    if measured:
        shown, val = "frames" if measured["kind"] == "frame" else "views", measured["val"]
        seen = "is, with teachers that did not see them in training," if measured.get("cross_fit") else "is"
        notes.append(
            f"On the {measured['crops']:,} {shown} that students learn from the teacher {seen} right on "
            f"{_percent(measured['overall_acc'])} of the labelled pixels (mIoU {_percent(measured['mean_iou'])}), "
            f"on val on {_percent(val['overall_acc'])} (mIoU {_percent(val['mean_iou'])}); "
            "one pixel of each stored cell counts."
        )
        if measured.get("memorised"):
            notes.append("The teacher has memorised its train frames: there it has little to teach but the labels.")
    if sentence := nothing_to_learn(summary):
        notes.append(sentence)
    return TeacherPart(notes, _class_table(summary), _doubted(metrics / "teacher_logits" / measured.get("kind", "")))


def _class_table(summary: Summary) -> Table | None:
    classes, control = compare_classes(summary), strongest_control(summary)
    if not classes or control is None:
        return None
    heads = [
        Cell("Class"),
        Cell("Teacher", "number", title="IoU on val, %"),
        Cell("Control", "number", title=f"IoU on val, %: {control.name}, mean over its seeds"),
        Cell("Difference", "number", title="points of IoU on val"),
        Cell("Teacher on views", "number", title="IoU, %, on what students learn from"),
    ]
    lines = []
    for one in classes:
        cells = [_share(one.teacher), _share(one.control)]
        if one.difference is None:
            cells.append(Cell(MISSING, "number none"))
        else:
            cells.append(Cell(signed(one.difference), "number loss" if one.below else "number", one.difference))
        on_views = _share(one.views)
        cells.append(on_views._replace(kind="number loss") if one.below_on_views else on_views)
        lines.append(Line(spaced(one.name), (), "", cells))
    return Table(heads, lines)


def _doubted(folder: Path) -> list[Strip]:
    """Return the frames that have images in the folder of a kind, with what frames.csv says of them."""
    path = folder / "frames.csv"
    if not path.is_file():
        return []
    strips = []
    with path.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            name = f"{int(row['frame']):05d}"
            if not (folder / f"{name}_image.jpg").is_file():
                break  # the frames with images come first
            images = [Shown("image", "", data_address("jpeg", (folder / f"{name}_image.jpg").read_bytes()))]
            for kind, caption in (("label", "label"), ("teacher", "teacher"), ("sure", "sure of another class")):
                address = data_address("png", (folder / f"{name}_{kind}.png").read_bytes())
                images.append(Shown(caption, "", address))
            head = f"Sure of another class on {float(row['sure_of_another']):.1%} of the labelled pixels"
            strips.append(Strip(head, f"train frame {row['frame']}, {row['name']}", images))
    return strips


def _share(iou: float | None) -> Cell:
    return Cell(MISSING, "number none") if iou is None else Cell(f"{100 * iou:.1f}", "number", iou)


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{share:.1%}"
