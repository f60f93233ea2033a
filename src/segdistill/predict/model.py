"""Model files of students, ONNX (float32 or int8) or safetensors, that predict frames.

Shapes: H/W frame in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from segdistill.core.errors import UserError
from segdistill.core.provenance import usable_cores
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.nets.device import TorchPredictor, resolve_device
from segdistill.nets.weights import load_net
from segdistill.params.archs import MIN_PX
from segdistill.scoring.evaluate import classes_of


class Model:
    """Predict one frame at a time, so the result of a frame does not depend on others.

    Args:
        path: a student's file; .onnx runs on the CPU, .safetensors on CUDA if available.
        threads: of the CPU; 0 is all cores.

    Raises:
        UserError: `path` is no file of a student.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path, self.threads = Path(path), threads or usable_cores()
        self._classes_1HW: Callable[[np.ndarray], np.ndarray]
        suffix = self.path.suffix.lower()
        if suffix == ".onnx":
            onnx_predictor = OnnxPredictor(self.path, self.threads)
            self.header, self._classes_1HW = onnx_predictor.header, onnx_predictor.classes
        elif suffix == ".safetensors":
            net, self.header = load_net(self.path)
            predictor = TorchPredictor(net, resolve_device("auto", "float32", self.threads))
            self._classes_1HW = lambda images: classes_of(predictor.logits(images), images.shape[1:3]).cpu().numpy()
        else:
            raise UserError(f"{path}: no file of a student by its name; allowed are .onnx and .safetensors")
        if self.header.table is None:
            raise UserError(f"{path}: its header does not name the classes, so they have no colours and ids")
        self.table = self.header.table

    def classes(self, image_HW3: np.ndarray) -> np.ndarray:
        """Return the class map uint8 (H, W) of a frame uint8 (H, W, 3) RGB.

        Raises:
            UserError: there is not enough memory for a frame of that size.
        """
        height, width = image_HW3.shape[:2]
        if min(height, width) < MIN_PX:  # networks need more: repeat the last row and column
            missing = ((0, max(0, MIN_PX - height)), (0, max(0, MIN_PX - width)), (0, 0))
            image_HW3 = np.pad(image_HW3, missing, mode="edge")
        try:
            return self._classes_1HW(np.require(image_HW3, requirements=("C", "W"))[None])[0, :height, :width]
        except Exception as error:  # each engine has its own
            if isinstance(error, MemoryError) or "alloc" in str(error):
                raise UserError(f"not enough memory for {height}x{width} pixels at once; try --tile") from None
            raise


def model_path(given: str, models: Path) -> Path:
    """Return the model file that `given` names: a path, or a run, which means its int8 file, else its float32 file.

    Raises:
        UserError: no file and no run has that name.
    """
    if Path(given).is_file() or Path(given).suffix or len(Path(given).parts) != 1:
        return Path(given)  # opening it reports a file that is missing
    files = [models / "runs" / given / name for name in ("student.int8.onnx", "student.onnx", "finetuned.safetensors")]
    for file in files:
        if file.is_file():
            return file
    folders = [path for path in (models / "runs").glob("*") if path.is_dir()]
    runs = sorted(path.name for path in folders)
    trained = f"runs there: {', '.join(runs)}" if runs else "no run is trained there"
    raise UserError(f"--model: found {given!r}; no such file, and no such run in {models / 'runs'} ({trained})")
