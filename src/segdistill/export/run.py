"""Export a finetuned student as float32 and int8 ONNX files, and score each on val, int8 on the unseen drives too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from segdistill.core.files import write_json
from segdistill.core.provenance import file_sha256
from segdistill.data.prepared import PreparedData, Split
from segdistill.export.gates import write_int8_within
from segdistill.export.onnx_file import OnnxPredictor, write_float32
from segdistill.formats.header import Header
from segdistill.nets.device import TorchPredictor, device_of
from segdistill.nets.weights import load_net
from segdistill.params.model import Params
from segdistill.paths import FINETUNED, METRICS, MODELS, STUDENT_ONNX, VAL_CLASSES, run_metrics, run_models
from segdistill.scoring.evaluate import LabelLoss, classes_of, evaluate
from segdistill.scoring.record import ClassMapArchive, metrics_on_disk


def export_run(params: Params, run: str, models: Path = MODELS, metrics: Path = METRICS) -> None:
    """Write student.onnx and student.int8.onnx of `run`, and their metrics to metrics/runs/RUN/export.json.

    The metrics are on val, those of int8 on the unseen drives too. What is chosen about the int8 file is chosen on the
    holdout, never on these.
    """
    data, export, folder = PreparedData.open(), params.export_params(run), run_models(run, models)
    settings, weights = params.distill_settings(run), folder / FINETUNED
    expected = Header.of_net(settings.network, len(data.table), settings.output_stride)
    net, header = load_net(weights, expected)
    teacher_classes = ClassMapArchive(models / "teacher" / VAL_CLASSES)  # before anything is written
    header = header.with_history(weights_sha256=file_sha256(weights))
    files = {precision: folder / name for precision, name in STUDENT_ONNX.items()}
    write_float32(files["float32"], net, header, export.opset, data.val.size_px)
    compute = device_of(params.compute).in_float32()._replace(device=torch.device("cpu"))
    quantisation = write_int8_within(
        files["int8"], files["float32"], net, header, data.train, data.holdout, export, compute.threads
    )
    torch_predictor = TorchPredictor(net, compute)

    def score(
        predictor: TorchPredictor | OnnxPredictor | _ComparedWithTorch,
        split: Split,
        teacher_classes: ClassMapArchive | None = None,
    ) -> dict:
        evaluation = evaluate(
            predictor,
            split,
            len(data.table),
            params.evaluation.batch_size,
            loss=LabelLoss.of(settings),
            teacher_classes=teacher_classes,
        )
        return metrics_on_disk(evaluation.metrics, data.table.names)

    rows = {"torch": score(torch_predictor, data.val, teacher_classes)}
    for precision, file in files.items():
        compared = _ComparedWithTorch(OnnxPredictor(file, compute.threads), torch_predictor)
        scores = score(compared, data.val, teacher_classes)
        rows[precision] = scores | compared.metrics() | {"bytes": file.stat().st_size}
    if data.unseen is not None:
        # float32 names the classes of torch, which finetune.json has the metrics of. int8 names its own.
        rows["int8"]["unseen"] = score(OnnxPredictor(files["int8"], compute.threads), data.unseen)
    write_json(run_metrics(run, metrics) / "export.json", rows | {"quantisation": quantisation})


class _ComparedWithTorch:
    """Run an ONNX file, as a ClassPredictor of `evaluate`, and measure its distance from torch."""

    def __init__(self, predictor: OnnxPredictor, reference: TorchPredictor) -> None:
        self.predictor, self.reference = predictor, reference
        self.difference, self.scale, self.agreeing, self.pixels = 0.0, 0.0, 0, 0

    def logits_and_classes(self, images_BHW3: np.ndarray) -> tuple[Tensor, Tensor]:
        logits, classes = self.predictor.logits_and_classes(images_BHW3)
        expected_logits = self.reference.logits(images_BHW3)
        expected_classes = classes_of(expected_logits, images_BHW3.shape[1:3])
        self.difference = max(self.difference, float((logits - expected_logits).abs().max()))
        self.scale = max(self.scale, float(expected_logits.abs().max()))
        self.agreeing += int((classes == expected_classes).sum())
        self.pixels += classes.numel()
        return logits, classes

    def metrics(self) -> dict:
        """Return the largest difference of a logit, absolute and relative, and the share of equal pixels."""
        return {
            "max_logit_difference": self.difference,
            "max_logit_difference_relative": self.difference / max(self.scale, 1e-12),
            "class_agreement_with_torch": self.agreeing / self.pixels,
        }
