"""Where frames come from: the built-in city, Cityscapes as published, or a folder of one's own."""

from __future__ import annotations

from segdistill.base.errors import InputError
from segdistill.sources.frame import DataParams, FrameSource

SOURCES = ("synthetic", "cityscapes", "folder")


def open_source(data: DataParams, seed: int) -> FrameSource:
    """The source that `data` asks for; InputError names the params path of what is wrong with it."""
    # Imported here, so that a source loads what it needs and no more.
    if data.source == "synthetic":
        from segdistill.sources.synthetic import SyntheticFrames

        if data.size_px is None:
            raise InputError("data.size_px: null; the synthetic city needs a size [height, width] in pixels")
        counts = {"train": data.synthetic.train_frames, "val": data.synthetic.val_frames}
        return SyntheticFrames(seed, counts, tuple(data.size_px))
    if data.source == "cityscapes":
        from segdistill.sources.cityscapes import open_cityscapes

        return open_cityscapes(data.root)
    if data.source == "folder":
        from segdistill.sources.folder import open_folder

        return open_folder(data.root)
    raise InputError(f"data.source: '{data.source}'; allowed: {', '.join(SOURCES)}")
