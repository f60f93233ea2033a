"""Pictures of the report: small copies of what the stages kept, inlined, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path

from PIL import Image

from segdistill.summary import Summary
from segdistill.summary.row import CONTROL

WIDTH_PX = 448  # of an inlined picture; a Cityscapes frame as it is would weigh 2 MB
MOST_FRAMES = 6  # with more, the report of a large sweep grows past what one likes to open or to send
_IMAGE = re.compile(r"([0-9]+)_image\.png")


def picture_strips(summary: Summary, metrics: Path) -> str:
    """One strip per kept frame: image, truth, teacher, controls, students. Pictures that are missing are left out."""
    indices = [
        match[1] for path in (metrics / "pictures").glob("*_image.png") if (match := _IMAGE.fullmatch(path.name))
    ]
    strips = [_strip(summary, metrics, index) for index in _spread(sorted(indices, key=int))]
    return "".join(strips) or "<p>No pictures were kept; evaluation.pictures in params.yaml sets how many.</p>"


def _spread(indices: list[str]) -> list[str]:
    if len(indices) <= MOST_FRAMES:
        return indices
    return [indices[number * len(indices) // MOST_FRAMES] for number in range(MOST_FRAMES)]


def _strip(summary: Summary, metrics: Path, index: str) -> str:
    shared = metrics / "pictures"
    shown = [(name, shared / f"{index}_{name}.png") for name in ("image", "truth", "teacher")]
    for row in sorted(summary.runs, key=lambda row: row.role != CONTROL):
        caption = f"{row.run} (control)" if row.role == CONTROL else row.run
        shown.append((caption, metrics / "runs" / row.run / "pictures" / f"{index}_student.png"))
    figures = "".join(_figure(caption, path) for caption, path in shown if path.is_file())
    return f'<h3>Frame {int(index)}</h3><div class="strip">{figures}</div>'


def _figure(caption: str, path: Path) -> str:
    text = escape(caption)
    return f'<figure><img alt="{text}" src="{_inlined(path)}"><figcaption>{text}</figcaption></figure>'


def _inlined(path: Path) -> str:
    """A data URL of the picture, at most WIDTH_PX wide: photographs as JPEG, class maps losslessly."""
    stream = io.BytesIO()
    with Image.open(path) as picture:
        is_class_map = picture.mode == "P"
        if picture.width > WIDTH_PX:
            size = (WIDTH_PX, max(1, round(picture.height * WIDTH_PX / picture.width)))
            # Class numbers must not be mixed with their neighbours.
            picture = picture.resize(size, Image.Resampling.NEAREST if is_class_map else Image.Resampling.LANCZOS)
        if is_class_map:
            picture.save(stream, "PNG", optimize=True)
        else:
            picture.convert("RGB").save(stream, "JPEG", quality=85, optimize=True)
    kind = "png" if is_class_map else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
