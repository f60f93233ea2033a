"""`segdistill synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segdistill.core.errors import UserError, exit_on_user_error

EXAMPLES = """[bold]Example[/]

segdistill synthesize data/raw --train-frames 100 --val-frames 20"""


def synthesize(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="folder to write; must be new or empty")],
    train_frames: Annotated[int, typer.Option(metavar="N", min=1, help="frames of the train split")] = 24,
    val_frames: Annotated[int, typer.Option(metavar="N", min=1, help="frames of the val split")] = 12,
    height_px: Annotated[int, typer.Option(metavar="PX", min=32, help="height of a frame")] = 128,
    width_px: Annotated[int, typer.Option(metavar="PX", min=32, help="width of a frame")] = 256,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="equal seeds give equal bytes")] = 0,
) -> None:
    """Write a built-in city as PNG files in the layout of Cityscapes."""
    from segdistill.core.files import atomic_directory
    from segdistill.core.progress import Progress
    from segdistill.core.provenance import usable_cores
    from segdistill.prepare.synthetic.render import write_city

    with exit_on_user_error():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists; allowed is a new or an empty folder")
        total = train_frames + val_frames
        with atomic_directory(out) as folder, Progress("drawing", total, unit="frame") as progress:
            write_city(
                folder,
                seed=seed,
                train_frames=train_frames,
                val_frames=val_frames,
                size_px=(height_px, width_px),
                workers=usable_cores(),
                written=progress.advance,
            )
    print(f"{out}: {train_frames} train and {val_frames} val frames of {height_px}x{width_px} pixels")
