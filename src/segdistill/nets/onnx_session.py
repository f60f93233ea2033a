"""ONNX files that this project writes: names of inputs and outputs, sessions, and the model to serve.

Loads no torch, so the report can register a model quickly.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime

from segdistill.core.errors import UserError
from segdistill.formats.header import KEY

INPUT, OUTPUTS = "image", ("classes", "logits")


def open_session(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of the file or the bytes `model` on the CPU; raise what onnxruntime raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that keep spinning after a run would take the cores from the next call in this process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_for_serving(path: str | Path) -> tuple[onnx.ModelProto, dict]:
    """Return (the model of an ONNX file with the class maps as its only output, the facts in its metadata).

    A server answers with every output, and as JSON the logits of one 1024x2048 frame are some 50 MB.

    Raises:
        UserError: no such file, no ONNX model, or one of another project.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # protobuf's exceptions differ between its versions
        raise UserError(f"{path}: no readable ONNX model ({' '.join(str(error).split())[:200]})") from None
    text = {entry.key: entry.value for entry in model.metadata_props}.get(KEY)
    outputs = [output.name for output in model.graph.output]
    if text is None or outputs != list(OUTPUTS):
        needed = f"{list(OUTPUTS)} and the metadata {KEY!r}"
        raise UserError(f"{path}: has outputs {outputs}; an exported student has {needed}")
    del model.graph.output[1:]
    return model, json.loads(text)
