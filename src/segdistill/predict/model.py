"""A model file of ours, opened to predict frames: ONNX (float32 or int8) or safetensors.

Shapes: H/W frame in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from segdistill.base.archs import LEAST_PX
from segdistill.base.errors import InputError
from segdistill.base.files import read_json
from segdistill.nets.checkpoint import load_net
from segdistill.nets.compute import choose
from segdistill.onnx_model.file import OnnxPredictor
from segdistill.predict.classes import class_table
from segdistill.provenance import usable_cores
from segdistill.scoring.evaluate import TorchPredictor


class Model:
    """A model file that takes one frame at a time, so that no frame depends on those beside it.

    Args:
        path: .onnx runs on the CPU; .safetensors on CUDA where there is one.
        threads: of the CPU; 0 is all cores.

    Raises:
        InputError: no model file of ours.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path, self.threads = Path(path), threads or usable_cores()
        opened = {".onnx": _open_onnx, ".safetensors": _open_safetensors}.get(self.path.suffix.lower())
        if opened is None:
            raise InputError(f"{path}: no model of ours by its name; allowed are .onnx and .safetensors")
        self.facts, self._classes_1HW = opened(self.path, self.threads)
        try:
            self.table = class_table(self.facts)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def classes(self, image_HW3: np.ndarray) -> np.ndarray:
        """The class map uint8 (H, W) of a frame uint8 (H, W, 3) RGB.

        Raises:
            InputError: the memory does not suffice for a frame of that size.
        """
        height, width = image_HW3.shape[:2]
        if min(height, width) < LEAST_PX:  # it is continued by its last row and column
            missing = ((0, max(0, LEAST_PX - height)), (0, max(0, LEAST_PX - width)), (0, 0))
            image_HW3 = np.pad(image_HW3, missing, mode="edge")
        try:
            return self._classes_1HW(np.require(image_HW3, requirements=("C", "W"))[None])[0, :height, :width]
        except Exception as error:  # each engine has its own
            if isinstance(error, MemoryError) or "alloc" in str(error):
                raise InputError(f"not enough memory for {height}x{width} pixels at once; try --tile") from None
            raise


_Classes = Callable[[np.ndarray], np.ndarray]


def _open_onnx(path: Path, threads: int) -> tuple[dict, _Classes]:
    predictor = OnnxPredictor(path, threads)
    return predictor.facts, predictor.classes


def _open_safetensors(path: Path, threads: int) -> tuple[dict, _Classes]:
    net, facts = load_net(path)
    predictor = TorchPredictor(net, choose("auto", "float32", threads))
    return facts, lambda images_1HW3: predictor(images_1HW3)[1].cpu().numpy()


def champion_path(metrics: Path) -> Path:
    """The file to ship, by the summary of the last report.

    Raises:
        InputError: there is no summary, it names no file, or the file is not there.
    """
    summary = metrics / "summary.json"
    otherwise = "name a model with --model, or make one with: dvc repro"
    try:
        champion = read_json(summary)["champion"]
        path = None if champion is None else Path(champion["path"])
    except FileNotFoundError:
        raise InputError(f"{summary}: no such file; {otherwise}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{summary}: damaged; {otherwise}") from None
    if path is None:
        raise InputError(f"{summary}: recommends no student; {otherwise}")
    if not path.is_file():
        raise InputError(f"{path}: no such file, though {summary} says to ship it; {otherwise}")
    return path
