"""What a training is watched by: the same frame of the holdout, pictured at bounded steps, whatever was killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segdistill.training.follower import PICTURES
from torch import nn

from segdistill.data.prepared import Split
from segdistill.formats.classes import ClassTable
from segdistill.nets.device import Compute
from segdistill.params.model import TrainingParams
from segdistill.training.holdout import MAX_IMAGES, HoldoutEvaluator, is_pictured, keep_images

pytestmark = pytest.mark.usefixtures("one_thread")
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)
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


def watch(folder, pictured=True, steps=6, every_steps=2) -> HoldoutEvaluator:
    return HoldoutEvaluator(holdout(), TABLE, 2, COMPUTE, settings(steps, every_steps), folder, pictured)


def test_the_middle_frame_is_pictured_at_each_evaluation(tmp_path):
    watched = watch(tmp_path)
    watched.picture_start(Says(1))
    # One of three classes is found, with two thirds too much of it: IoU 1/3, and 0 for the others.
    assert [watched(Says(answer), done) for answer, done in ((0, 2), (2, 4), (1, 6))] == pytest.approx([1 / 9] * 3)
    pictures = {path.name: np.asarray(Image.open(path)) for path in tmp_path.iterdir()}
    expected = {
        "00001_truth.png": 1,
        "00001_step_000000.png": 1,
        "00001_step_000002.png": 0,
        "00001_step_000004.png": 2,
        "00001_step_000006.png": 1,
    }
    assert {name: np.unique(pixels).tolist() for name, pixels in pictures.items()} == {
        name: [value] for name, value in expected.items()
    }
    assert all(pixels.shape == SIZE_PX for pixels in pictures.values())


def test_without_pictures_there_are_figures_alone(tmp_path):
    watched = watch(tmp_path, pictured=False)
    watched.picture_start(Says(0))
    assert watched(Says(0), 2) == pytest.approx(1 / 9)
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
def test_pictures_are_bounded_and_end_with_the_last_step(steps, every_steps, expected):
    evaluated = sorted({*range(every_steps, steps + 1, every_steps), steps})
    found = [done for done in evaluated if is_pictured(done, settings(steps, every_steps))]
    assert found == expected
    assert len(found) <= MAX_IMAGES + 1


def test_kept_pictures_replace_those_of_an_earlier_training(tmp_path):
    out, second = tmp_path / "distill_images", tmp_path / "second" / PICTURES
    watch(tmp_path / "first" / PICTURES)(Says(0), 2)
    keep_images(tmp_path / "first", out, otherwise=not_asked)
    watch(second)(Says(0), 4)
    (second / ".00001_step_000006.png.7.part").write_bytes(b"cut short")
    keep_images(tmp_path / "second", out, otherwise=not_asked)
    assert [path.name for path in out.iterdir()] == ["00001_step_000004.png"]


def not_asked(_: Path) -> None:
    raise AssertionError("there was a training")


def test_without_a_training_the_given_net_is_pictured(tmp_path):
    out = tmp_path / "finetune_images"
    keep_images(None, out, lambda folder: watch(folder).picture_start(Says(2)))
    assert sorted(path.name for path in out.iterdir()) == ["00001_step_000000.png", "00001_truth.png"]
