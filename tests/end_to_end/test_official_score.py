"""The official evaluator gives label ids that `segdistill predict` wrote of val the mIoU of metrics/."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.data.prepared import PreparedData
from segdistill.export.onnx_file import OnnxPredictor
from segdistill.paths import PREPARED
from segdistill.prepare.cityscapes import CLASSES
from segdistill.prepare.run import prepare
from segdistill.prepare.synthetic.render import write_city
from segdistill.scoring.evaluate import evaluate
from support.tiny_city import tinier_params

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


def official_score(truth: Path, results: Path, monkeypatch) -> float:
    """The mean IoU that the evaluator gives, its results looked up by name as on the server."""
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(results))
    args = argparse.Namespace(**vars(official.args))
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    args.predictionPath = args.predictionWalk = None
    labels = sorted(map(str, truth.glob("*/*_gtFine_labelIds.png")))
    assert len(labels) == 3
    results = [official.getPrediction(args, label) for label in labels]
    return official.evaluateImgLists(results, labels, args)["averageScoreClasses"]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_official_evaluator_gives_the_reported_mean_iou(precision, small_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_city(Path("data/raw"), seed=0, train_frames=4, val_frames=3, size_px=(64, 128))
    prepare(tinier_params(data={"source": "cityscapes", "size_px": None}).data, 0, PREPARED, workers=1)
    model = getattr(small_models, precision)
    metrics = evaluate(OnnxPredictor(model, 1), PreparedData.open().val, CLASSES, batch_size=2).metrics

    command = ["predict", "data/raw/leftImg8bit/val", "--model", str(model), "--threads", "1"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    scored = official_score(Path("data/raw/gtFine/val"), Path("predictions/label-ids"), monkeypatch)
    assert scored == pytest.approx(metrics["mean_iou"], abs=1e-9)
    assert scored > 0
