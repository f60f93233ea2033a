"""`segdistill predict`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from segdistill.core.errors import UserError, exit_on_user_error
from segdistill.paths import METRICS, MODELS
from segdistill.predict import KINDS

ALL_KINDS = ",".join(KINDS)
MIN_TILE_PX, USUAL_OVERLAP_PX = 64, 128

EXAMPLES = """[bold]Examples[/]

segdistill predict street.jpg
segdistill predict leftImg8bit/val --write label-ids --out results
segdistill predict "drive/**/*.jpg" --model light
segdistill predict street.jpg --model models/runs/light/student.onnx
segdistill predict drive.mp4 --out overlays
segdistill predict aerial.png --tile 1024x2048 --overlap 256
segdistill predict leftImg8bit/val --benchmark --threads 1"""

_LARGE, _SPEED = "Large frames", "Speed"
_Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="images, folders of images, videos, or globs in quotes"),
]
_Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="RUN|FILE", help="a run, or an ONNX or safetensors file", show_default="the student to ship"
    ),
]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of the outputs")]
_Write = Annotated[str, typer.Option("--write", metavar="KINDS", help="what to write, separated by commas")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace existing outputs")]
_Frames = Annotated[bool, typer.Option("--frames", help="write the frames of a video as images")]
_Tile = Annotated[
    str | None,
    typer.Option("--tile", metavar="HxW", help="predict in tiles of this many pixels", rich_help_panel=_LARGE),
]
_Overlap = Annotated[
    int | None,
    typer.Option(
        "--overlap",
        metavar="PX",
        min=0,
        help="pixels that neighbouring tiles share",
        show_default=f"{USUAL_OVERLAP_PX}, at most half a tile",
        rich_help_panel=_LARGE,
    ),
]
_Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=0, help="CPU threads; 0 takes all cores", rich_help_panel=_SPEED)
]
_Benchmark = Annotated[
    bool, typer.Option("--benchmark", help="time the model on the images; write nothing", rich_help_panel=_SPEED)
]


def predict(
    inputs: _Inputs,
    model_name: _Model = None,
    out: _Out = Path("predictions"),
    write: _Write = ALL_KINDS,
    overwrite: _Overwrite = False,
    frames: _Frames = False,
    tile: _Tile = None,
    overlap_px: _Overlap = None,
    threads: _Threads = 0,
    benchmark: _Benchmark = False,
) -> None:
    """Predict the classes of images and videos.

    overlay: the image half covered by the colours of its classes, or an MP4.
    color: the colours alone, as PNG.
    label-ids: the label id of each pixel as PNG, with the names that the
    Cityscapes evaluation server needs.
    """
    kinds, tiled = _kinds(write), _tiling(tile, overlap_px)
    with exit_on_user_error():
        from segdistill.predict.inputs import find_sources
        from segdistill.predict.outputs import plan

        sources = find_sources(inputs, out)
        if benchmark and any(source.is_video for source in sources):
            raise UserError("--benchmark: found a video; it takes images")
        jobs = [] if benchmark else plan(sources, out, kinds, frames=frames, overwrite=overwrite)

        # These load torch, so import them after the checks above.
        from segdistill.predict.model import Model, model_path
        from segdistill.predict.run import predict_files
        from segdistill.predict.speed import measure
        from segdistill.predict.tiles import Tiling
        from segdistill.results.champion import champion_path

        model = Model(model_path(model_name, MODELS) if model_name else champion_path(METRICS), threads)
        tiling = Tiling(*tiled) if tiled else None
        if benchmark:
            print("\n".join(measure(model, [source.path for source in sources], tiling)))
            return
        print(f"model: {model.path}{'' if model_name else ', the student to ship by metrics/summary.json'}", flush=True)
        predict_files(model, jobs, tiling)
    folders = sorted({str(out / kind) for job in jobs for kind in job.targets})
    print(f"{len(jobs)} predicted: {', '.join(folders)}")


def _kinds(write: str) -> list[str]:
    kinds = [kind.strip() for kind in write.split(",")]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        found = ", ".join(map(repr, unknown))
        raise typer.BadParameter(f"found {found}; allowed are {', '.join(KINDS)}", param_hint="--write")
    return list(dict.fromkeys(kinds))


def _tiling(tile: str | None, overlap_px: int | None) -> tuple[tuple[int, int], int] | None:
    """Return ((height, width) of a tile, overlap) in pixels; None is no tiles."""
    if tile is None:
        if overlap_px is not None:
            raise typer.BadParameter("there is nothing to overlap without --tile", param_hint="--overlap")
        return None
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", tile)
    if match is None or min(map(int, match.groups())) < MIN_TILE_PX:
        allowed = f"allowed is HEIGHTxWIDTH, each at least {MIN_TILE_PX} pixels"
        raise typer.BadParameter(f"found {tile!r}; {allowed}", param_hint="--tile")
    tile_px = int(match[1]), int(match[2])
    most_px = min(tile_px) // 2
    if overlap_px is not None and overlap_px > most_px:
        raise typer.BadParameter(f"found {overlap_px}; at most half a tile, {most_px}", param_hint="--overlap")
    return tile_px, min(USUAL_OVERLAP_PX, most_px) if overlap_px is None else overlap_px
