"""A teacher in an ONNX file of any origin: read from the file how it takes images; refuse a file that does not fit.

Shapes: B batch, H/W image in pixels, C classes, h/w the file's own grid.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from segdistill.core.errors import UserError
from segdistill.core.log import logger
from segdistill.formats.header import KEY, Header
from segdistill.nets.onnx_session import open_session

_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_LOGITS = "logits"


def write_in_one_file(source: str | Path, out: Path) -> None:
    """Copy an ONNX file together with its external weights."""
    try:
        model = onnx.load(source)
        if model == onnx.load(source, load_external_data=False):  # it has no external weights
            shutil.copyfile(source, out)
        else:
            out.write_bytes(model.SerializeToString())
    except Exception as error:  # protobuf and onnx raise nearly anything, and only ValueError beyond 2 GB
        raise UserError(f"{source}: cannot be copied with its weights ({_gist(error)})") from None


class OnnxTeacher:
    """Compute logits of uint8 RGB images with an ONNX file, on onnxruntime's CPU provider.

    The file has one input, an image of three planes, first (B, 3, H, W) or last (B, H, W, 3). It takes bytes, or floats
    (RGB in 0..1 - mean) / std. Its logits, float (B, C, h, w), are the output named "logits", else the first one. Where
    that output holds probabilities, because the file ends in Softmax, their logarithm is taken.

    Attributes:
        size_px: the only size (H, W) that the file takes; None where it takes any.
    """

    def __init__(
        self,
        path: str | Path,
        classes: int,
        threads: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        name: str | None = None,
    ) -> None:
        """Open and check the file, which messages call `name`, or else by its own name.

        Raises:
            UserError: no such file, no ONNX model, or one whose input or output has another form.
        """
        self.name, self.classes = name or Path(path).name, classes
        if not Path(path).is_file():
            raise UserError(f"teacher.checkpoint: found {str(path)!r}; no such file")
        try:
            self._session = open_session(str(path), threads)
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise UserError(f"teacher.checkpoint: {path}: no readable ONNX model ({_gist(error)})") from None
        self._mean, self._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self._read_input()
        self._read_output()
        self._gives_probabilities: bool | None = None  # not known before the first image
        # Exported students also have class maps as an output: do not compute them.
        self._only_logits = onnxruntime.RunOptions()
        self._only_logits.only_execute_path_to_fetches = True

    @property
    def header(self) -> Header | None:
        """Return the header in a file of this project; None in others.

        Raises:
            UserError: it describes no network.
        """
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        return None if text is None else Header.parse(text, f"teacher.checkpoint: {self.name}")

    def _refuse(self, found: str, allowed: str) -> UserError:
        return UserError(f"teacher.checkpoint: {self.name}: found {found}; allowed is {allowed}")

    def _read_input(self) -> None:
        inputs = self._session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        planes = [axis for axis in (1, 3) if len(shape) == 4 and shape[axis] == 3]
        if not planes or (inputs[0].type not in _FLOATS and inputs[0].type != "tensor(uint8)"):
            found = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
            raise self._refuse(
                f"inputs {found}",
                "one, float or uint8, of shape [batch, 3, height, width] or [batch, height, width, 3]",
            )
        if shape[0] != 1 and isinstance(shape[0], int):
            raise self._refuse(f"input {inputs[0].name} {shape}", "a batch of 1 or of any size")
        self._input, self._one_by_one = inputs[0].name, shape[0] == 1
        self._planes_first = planes[0] == 1
        self._dtype = _FLOATS.get(inputs[0].type)  # None for bytes
        size = shape[2:] if self._planes_first else shape[1:3]
        if sum(isinstance(side, int) for side in size) == 1:
            raise self._refuse(f"input {inputs[0].name} {shape}", "a height and width that are both fixed or both not")
        self.size_px = tuple(size) if isinstance(size[0], int) else None

    def _read_output(self) -> None:
        outputs = self._session.get_outputs()
        chosen = next((output for output in outputs if output.name == _LOGITS), outputs[0])
        self._output, shape = chosen.name, chosen.shape
        found = f"output {chosen.name} {chosen.type} {shape}"
        if chosen.type not in _FLOATS or len(shape) != 4:
            raise self._refuse(found, f"logits, float of shape [batch, {self.classes}, height, width]")
        if isinstance(shape[1], int) and shape[1] != self.classes:
            raise self._refuse(found, f"one of {self.classes} classes, as the data has them")

    def logits(self, images_BHW3: np.ndarray) -> Tensor:
        """Return logits float32 (B, C, h, w) of uint8 images.

        Raises:
            UserError: the file does not run at their size, or gives values that are not finite.
        """
        pixels = images_BHW3
        if self._dtype is not None:
            pixels = ((images_BHW3.astype(np.float32) / 255 - self._mean) / self._std).astype(self._dtype)
        if self._planes_first:
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        parts = [pixels[slot : slot + 1] for slot in range(len(pixels))] if self._one_by_one else [pixels]
        logits = np.concatenate([self._run(part) for part in parts])
        if self._gives_probabilities is None:
            self._gives_probabilities = _are_probabilities(logits)
            if self._gives_probabilities:
                logger.warning(
                    "teacher.checkpoint: %s: output %s holds probabilities, not logits (its values sum to 1 over the "
                    "classes, as after Softmax); taking their logarithm",
                    self.name,
                    self._output,
                )
            elif logits.min() >= 0 and logits.max() <= 1:
                logger.warning(
                    "teacher.checkpoint: %s: output %s is between 0 and 1, as after Sigmoid; students learn from the "
                    "softmax of these values, which is nearly the same for all classes: export the file without its "
                    "last activation",
                    self.name,
                    self._output,
                )
        if self._gives_probabilities:
            # Softmax of the logarithm gives the same probabilities again. One that was rounded to 0 counts as the
            # smallest number of the file's precision.
            logits = np.log(np.maximum(logits, np.finfo(logits.dtype).smallest_subnormal).astype(np.float32))
        return torch.from_numpy(logits.astype(np.float32))

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        try:
            (logits,) = self._session.run([self._output], {self._input: pixels}, self._only_logits)
        except Exception as error:  # as above
            raise UserError(
                f"teacher.checkpoint: {self.name}: does not run on an input {list(pixels.shape)} ({_gist(error)})"
            ) from None
        if logits.ndim != 4 or logits.shape[:2] != (len(pixels), self.classes):
            raise self._refuse(
                f"logits {list(logits.shape)} of an input {list(pixels.shape)}",
                f"[{len(pixels)}, {self.classes}, height, width]",
            )
        if not np.isfinite(logits).all():
            raise self._refuse("logits that are not finite", "a file that gives finite ones for every image")
        return logits


def _are_probabilities(outputs_BChw: np.ndarray) -> bool:
    """Return whether outputs are within 0..1 and sum to 1 over the classes, which logits of an image do not."""
    values = outputs_BChw.astype(np.float32)
    rounding = 0.01 if outputs_BChw.dtype == np.float16 else 1e-3
    if values.shape[1] < 2 or values.min() < -rounding or values.max() > 1 + rounding:
        return False
    return bool(np.abs(values.sum(axis=1) - 1).max() < rounding)


def _gist(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
