"""Measure how fast a model file predicts images on this machine, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from segdistill.core.progress import Progress
from segdistill.core.provenance import package_versions, processor
from segdistill.latency.timing import interleaved_ms, quantiles
from segdistill.predict.images import read_image
from segdistill.predict.model import Model
from segdistill.predict.run import class_map
from segdistill.predict.tiles import Tiling

MAX_IMAGES = 16  # held in memory
ROUNDS, WARMUP_ROUNDS = 50, 5


def measure(model: Model, paths: Sequence[Path], tiling: Tiling | None = None) -> list[str]:
    """Time `model` on up to MAX_IMAGES of the images in turn, after a warm-up, and return the result as lines of text.

    Raises:
        UserError: an image that cannot be read.
    """
    paths = paths[:MAX_IMAGES]

    def read(number: int) -> Image.Image:
        return read_image(paths[number % len(paths)], any_size=tiling is not None)

    images = [read(number) for number in range(len(paths))]
    calls = {
        "image in memory to class map": lambda number: class_map(model.classes, images[number % len(paths)], tiling),
        "image file to class map": lambda number: class_map(model.classes, read(number), tiling),
    }
    with Progress("timing", WARMUP_ROUNDS + ROUNDS, unit="round", timing=True) as progress:
        taken_ms = interleaved_ms(calls, ROUNDS, WARMUP_ROUNDS, progress.advance)
    sizes = ", ".join(sorted({f"{image.height}x{image.width}" for image in images}))
    in_tiles = ""
    if tiling is not None:
        in_tiles = f" in tiles of {tiling.tile_px[0]}x{tiling.tile_px[1]}, {tiling.overlap_px} overlapping"
    lines = [
        f"{model.path}, threads {model.threads}, batch 1",
        f"{len(images)} image{'s' if len(images) > 1 else ''} of {sizes} pixels{in_tiles}",
        f"{ROUNDS} rounds after {WARMUP_ROUNDS} of warm-up that are not counted",
        ", ".join([processor(), *(f"{name} {v}" for name, v in package_versions("onnxruntime", "torch").items())]),
    ]
    for what, taken in taken_ms.items():
        found = quantiles(taken, "all")
        p50_p95 = f"p50 {found['all_p50_ms']:.2f} ms   p95 {found['all_p95_ms']:.2f} ms"
        lines.append(f"{what:32}{1000 / found['all_mean_ms']:8.1f} fps   {p50_p95}")
    return lines
