"""From a finetuned student to the files that ship: float32 and int8 ONNX, each checked against torch on val."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from segdistill.base.files import write_json
from segdistill.base.params import Params
from segdistill.frames.dataset import PREPARED, open_split, read_index
from segdistill.nets.checkpoint import load_net, net_facts
from segdistill.onnx_model.file import OnnxPredictor, write_float32, write_int8
from segdistill.provenance import file_sha256
from segdistill.scoring.class_maps import ClassMapArchive
from segdistill.scoring.evaluate import Predictor, TorchPredictor, evaluate, spread
from segdistill.scoring.metrics_file import figures_on_disk
from segdistill.training.training_job import compute_of


def export_run(params: Params, run: str, models: Path = Path("models"), metrics: Path = Path("metrics/runs")) -> None:
    """Write student.onnx and student.int8.onnx of `run`, and what each scores on val in metrics/runs/RUN/export.json.

    The int8 ranges are calibrated on frames of the holdout, evenly spread: never on what is reported.
    """
    export, folder = params.export_params(run), models / "runs" / run
    settings, classes = params.distill_settings(run), len(read_index(PREPARED)["classes"])
    expected = net_facts(settings.student, classes, settings.output_stride)
    net, facts = load_net(folder / "finetuned.safetensors", expected)
    teacher_classes = ClassMapArchive(models / "teacher" / "val_classes.npz")  # before anything is written
    val, holdout = open_split("val"), open_split("holdout")
    facts |= {"weights_sha256": file_sha256(folder / "finetuned.safetensors")}
    files = {"float32": folder / "student.onnx", "int8": folder / "student.int8.onnx"}
    write_float32(files["float32"], net, facts, export.opset, val.size_px)
    calibration = holdout.images[spread(len(holdout), export.calibration_images)]
    write_int8(files["int8"], net, facts, export.opset, calibration)

    compute = compute_of(params).in_float32()._replace(device=torch.device("cpu"))
    scorer = _Scorer(params, run, TorchPredictor(net, compute), teacher_classes)
    rows = {"torch": scorer.score(scorer.torch_predictor)}
    for precision, file in files.items():
        compared = _Compared(OnnxPredictor(file, compute.threads), scorer.torch_predictor)
        rows[precision] = scorer.score(compared) | compared.figures() | {"bytes": file.stat().st_size}
    write_json(metrics / run / "export.json", rows)


class _Scorer:
    """Scores a predictor of one run on val."""

    def __init__(
        self, params: Params, run: str, torch_predictor: TorchPredictor, teacher_classes: ClassMapArchive
    ) -> None:
        self.settings, self.batch_size = params.distill_settings(run), params.evaluation.batch_size
        self.torch_predictor = torch_predictor
        self.teacher_classes = teacher_classes
        self.class_names, self.val = read_index(PREPARED)["classes"], open_split("val")

    def score(self, predict: Predictor) -> dict:
        figures, _ = evaluate(
            predict,
            self.val,
            len(self.class_names),
            self.batch_size,
            loss_kind=self.settings.label_loss,
            focal_gamma=self.settings.focal_gamma,
            teacher_classes=self.teacher_classes,
        )
        return figures_on_disk(figures, self.class_names)


class _Compared:
    """A predictor that also keeps count of how far it is from another one."""

    def __init__(self, predict: Predictor, reference: Predictor) -> None:
        self.predict, self.reference = predict, reference
        self.difference, self.scale, self.agreeing, self.pixels = 0.0, 0.0, 0, 0

    def __call__(self, images_BHW3: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        logits, classes = self.predict(images_BHW3)
        expected_logits, expected_classes = self.reference(images_BHW3)
        self.difference = max(self.difference, float((logits - expected_logits).abs().max()))
        self.scale = max(self.scale, float(expected_logits.abs().max()))
        self.agreeing += int((classes == expected_classes).sum())
        self.pixels += classes.numel()
        return logits, classes

    def figures(self) -> dict:
        """Largest difference of a logit, absolute and against the largest logit, and the share of equal pixels."""
        return {
            "max_logit_difference": self.difference,
            "max_logit_difference_relative": self.difference / max(self.scale, 1e-12),
            "class_agreement_with_torch": self.agreeing / self.pixels,
        }
