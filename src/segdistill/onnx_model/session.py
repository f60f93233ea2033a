"""How onnxruntime is run here, on the CPU and quietly."""

from __future__ import annotations

import onnxruntime


def open_session(model: str | bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session of the file or the bytes `model`; raises whatever onnxruntime raises."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Workers that spin after a run would take the cores from whoever comes next in this process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
