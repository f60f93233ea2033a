"""Evaluation on the holdout during training: mIoU, and images of one frame at a bounded number of steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segdistill.data.prepared import PreparedData, Split
from segdistill.formats.classes import ClassTable
from segdistill.params.model import TrainingParams
from segdistill.training.holdout import IMAGES, MAX_IMAGES, HoldoutEvaluator, keep_images, saves_image
from support.tiny_city import tinier_params

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, SIZE_PX, CLASSES = 3, (8, 16), 3
TABLE = ClassTable(("road", "car", "sky"), (7, 26, 23), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


class Says(nn.Module):
    """Gives every pixel the class `answer`."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images_BCHW), CLASSES, *SIZE_PX)
        logits[:, self.answer] = 1
        return logits


def settings(steps: int, every_steps: int) -> TrainingParams:
    return TrainingParams.model_construct(steps=steps, evaluate_every_steps=every_steps)


def holdout() -> Split:
    """Frame i is all of class i."""
    labels = np.arange(FRAMES, dtype=np.uint8)[:, None, None].repeat(SIZE_PX[0], 1).repeat(SIZE_PX[1], 2)
    return Split(np.zeros((*labels.shape, 3), np.uint8), labels, tuple("abc"))


def evaluator(folder: Path, images: int = 1, steps: int = 6, every_steps: int = 2) -> HoldoutEvaluator:
    params = tinier_params(evaluation={"images": images}, compute={"precision": "float32"})
    data = PreparedData(Path(), "fingerprint", TABLE, {})
    data.__dict__["holdout"] = holdout()  # in place of the arrays on disk
    return HoldoutEvaluator(params, data, settings(steps, every_steps), folder)


def test_image_of_the_middle_frame_is_saved_at_each_evaluation(tmp_path):
    evaluate = evaluator(tmp_path)
    evaluate.save_start(Says(1))
    # One of three classes is found, with two thirds too much of it: IoU 1/3, and 0 for the others.
    assert [evaluate(Says(answer), done) for answer, done in ((0, 2), (2, 4), (1, 6))] == pytest.approx([1 / 9] * 3)
    images = {path.name: np.asarray(Image.open(path)) for path in tmp_path.iterdir()}
    expected = {
        "00001_truth.png": 1,
        "00001_step_000000.png": 1,
        "00001_step_000002.png": 0,
        "00001_step_000004.png": 2,
        "00001_step_000006.png": 1,
    }
    assert {name: np.unique(pixels).tolist() for name, pixels in images.items()} == {
        name: [value] for name, value in expected.items()
    }
    assert all(pixels.shape == SIZE_PX for pixels in images.values())


def test_without_images_only_the_metric_is_computed(tmp_path):
    evaluate = evaluator(tmp_path, images=0)
    evaluate.save_start(Says(0))
    assert evaluate(Says(0), 2) == pytest.approx(1 / 9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "every_steps", "expected"),
    [
        (6, 2, [2, 4, 6]),
        (7, 3, [3, 6, 7]),
        (30_000, 500, list(range(1000, 30_001, 1000))),  # 60 evaluations: every second
        (41, 1, [*range(2, 41, 2), 41]),
    ],
)
def test_number_of_images_is_bounded_and_the_last_step_has_one(steps, every_steps, expected):
    evaluated = sorted({*range(every_steps, steps + 1, every_steps), steps})
    found = [done for done in evaluated if saves_image(done, settings(steps, every_steps))]
    assert found == expected
    assert len(found) <= MAX_IMAGES + 1


def test_kept_images_replace_those_of_an_earlier_training(tmp_path):
    out, second = tmp_path / "distill_images", tmp_path / "second" / IMAGES
    evaluator(tmp_path / "first" / IMAGES)(Says(0), 2)
    keep_images(tmp_path / "first", out, otherwise=not_called)
    evaluator(second)(Says(0), 4)
    (second / ".00001_step_000006.png.7.part").write_bytes(b"cut short")
    keep_images(tmp_path / "second", out, otherwise=not_called)
    assert [path.name for path in out.iterdir()] == ["00001_step_000004.png"]


def not_called(_: Path) -> None:
    raise AssertionError("there was a training")


def test_without_a_training_the_given_network_has_an_image(tmp_path):
    out = tmp_path / "finetune_images"
    keep_images(None, out, lambda folder: evaluator(folder).save_start(Says(2)))
    assert sorted(path.name for path in out.iterdir()) == ["00001_step_000000.png", "00001_truth.png"]
