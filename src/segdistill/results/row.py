"""One line of the summary: everything the sweep says about one model."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

TEACHER, CONTROL, STUDENT = "teacher", "control", "student"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model. Scores are on val, as fractions; MB are 10^6 bytes; what does not apply or is undefined is None.

    Latencies are per image, end to end: uint8 image in, class map out. Models of one architecture share them.
    """

    run: str
    role: str  # teacher, control (a run without a teacher) or student
    arch: str
    alpha: float | None = None
    lr: float | None = None
    temperature: float | None = None
    method: str | None = None
    teacher: str | None = None  # what a student learns from: views, frame, online; None for a control
    label_loss: str | None = None
    schedule: str | None = None
    steps: int | None = None
    finetune_steps: int | None = None
    seed: int | None = None
    parameters: int | None = None
    distilled_mean_iou: float | None = None
    mean_loss: float | None = None
    overall_acc: float | None = None
    mean_acc: float | None = None
    freqw_acc: float | None = None
    mean_iou: float | None = None
    teacher_agreement: float | None = None
    control: str | None = None  # the run that gain_over_vanilla is measured against
    gain_over_vanilla: float | None = None
    float32_mean_iou: float | None = None
    int8_mean_iou: float | None = None
    float32_mb: float | None = None
    int8_mb: float | None = None
    torch_p50_ms: float | None = None
    torch_best_p50_ms: float | None = None
    onnx_float32_p50_ms: float | None = None
    onnx_int8_p50_ms: float | None = None
    s_per_image: float | None = None  # mean, PyTorch
    torch_total_ms: float | None = None  # all frames of the benchmark
    onnx_total_ms: float | None = None  # the same, float32 ONNX
    row_key: str | None = None
    class_iou: dict[str, float | None] = field(default_factory=dict)

    def timed(self, precision: str = "float32") -> tuple[str, float] | None:
        """(engine, p50 ms) of the whole model, in the form nearest to `precision` that was measured; None without any.

        PyTorch stands last: of a teacher of several parts nothing else is measured.
        """
        # A teacher whose parameters are not known is partly ONNX.
        whole = "PyTorch" if self.parameters else "PyTorch and ONNX"
        measured = [("int8 ONNX", self.onnx_int8_p50_ms)] if precision == "int8" else []
        measured += [("float32 ONNX", self.onnx_float32_p50_ms), (whole, self.torch_p50_ms)]
        return next(((engine, p50_ms) for engine, p50_ms in measured if p50_ms is not None), None)

    def figures(self) -> dict:
        """All but class_iou, flat, in the order of the columns of summary.csv."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(column.name for column in fields(Row) if column.name != "class_iou")
