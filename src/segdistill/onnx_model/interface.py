"""What an ONNX file of ours looks like from outside: its names and facts, and the form of it that is served.

This module needs no torch, so that what only hands a file on starts without it.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx

from segdistill.base.errors import InputError

INPUT, OUTPUTS = "image", ("classes", "logits")
METADATA = "segdistill"  # key of the metadata of a file of ours: its facts as JSON


def read_for_serving(path: str | Path) -> tuple[onnx.ModelProto, dict]:
    """(the model of an ONNX file of ours with the class maps as its one output, the facts in its metadata).

    A server answers with every output, and as JSON the logits of one 1024x2048 frame are some 50 MB.

    Raises:
        InputError: no such file, no ONNX model, or none of ours.
    """
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # protobuf's own exceptions are not the same in all its versions
        raise InputError(f"{path}: no readable ONNX model ({' '.join(str(error).split())[:200]})") from None
    facts = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA)
    outputs = [output.name for output in model.graph.output]
    if facts is None or outputs != list(OUTPUTS):
        raise InputError(f"{path}: has outputs {outputs}; ours has {list(OUTPUTS)} and says what it is in its metadata")
    del model.graph.output[1:]
    return model, json.loads(facts)
