"""The int8 file of a student, quantised harder and harder until it loses little enough on the holdout.

The first gate is min-max ranges on `export.calibration_images` frames. While the loss is above `export.max_int8_loss`
come, in this order: ranges of more frames, narrower ranges (`export.ranges`), and layers left in float32, the most
sensitive first. Each try costs one pass over the holdout; measuring the sensitivity costs one over a few frames for
each layer. Val is never read: the metrics are about it.

Ranges come from train frames, which show more cities or drives than the holdout does. Ranges of a holdout of one drive
clipped activations on another: 8.4% of one student's pixels changed class there, and 3.1% with ranges of train.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import nn

from segdistill.core.files import atomic_file
from segdistill.core.log import logger
from segdistill.data.prepared import Split
from segdistill.export.onnx_file import OnnxPredictor, quantizer_of, write_quantised
from segdistill.export.quantize import Layer, Quantizer, Ranges
from segdistill.export.ranges import SEARCHES, histograms, searched
from segdistill.formats.header import Header
from segdistill.nets.onnx_session import INPUT, OUTPUTS, open_session
from segdistill.params.model import ExportParams
from segdistill.scoring.confusion import Confusion
from segdistill.scoring.evaluate import evenly_spaced

MIN_MAX, MORE_FRAMES, FLOAT_LAYERS = "min-max", "more frames", "layers in float"
MORE = 4  # times the frames of the first try
SENSITIVITY_FRAMES = 4


class Try(NamedTuple):
    """One way to quantise, and what the result lost on the holdout, in points of mIoU against float32."""

    gate: str
    calibration_frames: int
    ranges: Ranges
    float_layers: tuple[Layer, ...]
    holdout_loss: float

    def facts(self) -> dict:
        """Return the try as export.json holds it; a layer bears the name of its first node."""
        facts = self._asdict() | {"float_layers": [layer[0] for layer in self.float_layers]}
        del facts["ranges"]
        return facts


def write_int8_within(
    path: Path,
    float32: Path,
    net: nn.Module,
    header: Header,
    train: Split,
    holdout: Split,
    export: ExportParams,
    threads: int,
) -> dict:
    """Write the first int8 file that loses at most `export.max_int8_loss` points on the holdout, else the best one.

    Args:
        float32: the float32 file of `net`, which the loss is measured against.
        train: the frames to calibrate with.

    Returns:
        The section `quantisation` of export.json: the gate of the file, its loss, its float layers, and all tries.
    """
    bound, frames = export.max_int8_loss, evenly_spaced(len(train), export.calibration_images)
    quantizer = quantizer_of(net, export.opset, holdout.size_px)
    quantizer.calibrate(train.images[frames])
    float_mean_iou = None if bound is None else mean_iou_of(float32, holdout, header.classes, threads)
    if bound is None or float_mean_iou is None:  # none where no class occurs in the holdout
        write_quantised(path, quantizer.quantised(), header)
        return {"gate": MIN_MAX, "max_int8_loss": bound, "tries": []}
    tries: list[Try] = []

    def attempt(gate: str, ranges: Ranges, float_layers: Sequence[Layer] = ()) -> bool:
        """Quantise and score; keep the file where it is the best so far. Return whether one is within the bound."""
        with tempfile.TemporaryDirectory() as folder:
            candidate = Path(folder) / path.name
            model = quantizer.quantised(ranges, float_nodes=itertools.chain(*float_layers))
            write_quantised(candidate, model, header, [layer[0] for layer in float_layers])
            loss = 100 * (float_mean_iou - (mean_iou_of(candidate, holdout, header.classes, threads) or 0.0))
            if all(loss < one.holdout_loss for one in tries):
                with atomic_file(path) as temporary:
                    temporary.write_bytes(candidate.read_bytes())
        tries.append(Try(gate, len(frames), ranges, tuple(float_layers), loss))
        if loss > bound:
            logger.info("%s: with %s int8 loses %.2f points on the holdout; allowed are %g", path, gate, loss, bound)
        return loss <= bound

    def run_gates() -> bool:
        """Go through the gates in their order, to the first try within the bound; return whether there is one."""
        nonlocal frames
        if attempt(MIN_MAX, quantizer.ranges):
            return True
        if more := [frame for frame in evenly_spaced(len(train), MORE * len(frames)) if frame not in frames]:
            quantizer.calibrate(train.images[more])  # widens the ranges of the first frames
            frames = sorted([*frames, *more])
            if attempt(MORE_FRAMES, quantizer.ranges):
                return True
        found = histograms(quantizer.model, quantizer.ranges, train.images[frames], threads)
        if any(attempt(search, searched(search, quantizer.ranges, found)) for search in SEARCHES):
            return True
        ranges, few = _best(tries).ranges, evenly_spaced(len(holdout), SENSITIVITY_FRAMES)
        ranked = by_sensitivity(quantizer, ranges, holdout.images[few], threads)
        # A file with more than half of its layers in float32 would be no int8 file any more.
        counts = itertools.takewhile(lambda count: 2 * count <= len(ranked), (2**power for power in itertools.count()))
        return any(attempt(FLOAT_LAYERS, ranges, ranked[:count]) for count in counts)

    if not run_gates():
        logger.warning(
            "%s: int8 loses %.2f points of mIoU on the holdout; export.max_int8_loss allows %g. Ship the float32 file",
            path,
            _best(tries).holdout_loss,
            bound,
        )
    return _best(tries).facts() | {"max_int8_loss": bound, "tries": [one.facts() for one in tries]}


def _best(tries: Sequence[Try]) -> Try:
    return min(tries, key=lambda one: one.holdout_loss)


def by_sensitivity(quantizer: Quantizer, ranges: Ranges, images: np.ndarray, threads: int) -> list[Layer]:
    """Return the layers; the first changes the predictions most when it alone is quantised.

    The change is the mean KL divergence of the class probabilities from those of float32, over `images` (N, H, W, 3).
    """
    expected = _log_probabilities(quantizer.model, images, threads)
    layers = quantizer.layers()
    changes = []
    for layer in layers:
        found = _log_probabilities(quantizer.quantised(ranges, only=layer), images, threads)
        changes.append(
            sum(float((want.exp() * (want - have)).sum(1).mean()) for want, have in zip(expected, found, strict=True))
        )
    order = sorted(range(len(layers)), key=lambda index: -changes[index])
    return [layers[index] for index in order]


def _log_probabilities(model: onnx.ModelProto, images: np.ndarray, threads: int) -> list[torch.Tensor]:
    """Return the log softmax (1, C, h, w) of each image, on the network's own grid."""
    session = open_session(model.SerializeToString(), threads)
    logits = (session.run([OUTPUTS[1]], {INPUT: np.array(image)[None]})[0] for image in images)
    return [torch.from_numpy(one).log_softmax(1) for one in logits]


def mean_iou_of(file: Path, split: Split, classes: int, threads: int) -> float | None:
    """Return the mIoU of an ONNX file on a split; unlike `evaluate`, this takes no time for losses."""
    predictor, confusion = OnnxPredictor(file, threads), Confusion(classes)
    for image, label in zip(split.images, split.labels, strict=True):
        confusion.add(torch.from_numpy(predictor.classes(np.array(image)[None])[0]), torch.from_numpy(np.array(label)))
    return confusion.metrics()["mean_iou"]
