"""Rows of a summary, made by hand."""

from __future__ import annotations

from segdistill.results.row import Row


def one(run: str, mean_iou: float | None, int8_mean_iou: float | None = None, **other) -> Row:
    """Return a run whose float32 file takes 10 ms and whose int8 file, where it has one, takes 5 ms."""
    int8 = {} if int8_mean_iou is None else {"int8_mean_iou": int8_mean_iou, "int8_mb": 2.0, "onnx_int8_p50_ms": 5.0}
    usual = {"role": "student", "arch": "net", "mean_iou": mean_iou, "float32_mean_iou": mean_iou, "float32_mb": 8.0}
    return Row(run=run, **(usual | {"onnx_float32_p50_ms": 10.0} | int8 | other))
