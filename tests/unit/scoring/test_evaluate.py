"""One evaluation for every engine, against metrics counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.data.prepared import Split
from segdistill.data.transforms import normalize
from segdistill.formats.classes import IGNORE
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.resize import upsample
from segdistill.scoring.evaluate import LabelLoss, evaluate, evenly_spaced

COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)
FRAMES, SIZE_PX, CLASSES = 5, (8, 12), 4


@pytest.fixture(scope="module")
def split() -> Split:
    """Frame i starts with the grey level i, so that a predictor knows which frame it gets; some pixels are void."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (FRAMES, *SIZE_PX)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    labels[3, 2:] = IGNORE  # frames differ in how much is valid
    images = rng.integers(0, 256, (FRAMES, *SIZE_PX, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(FRAMES)
    return Split(images, labels, tuple(f"frame{i}" for i in range(FRAMES)))


class FakePredictor:
    """Gives prescribed logits (N, C, h, w) and class maps (N, H, W) for the frames that it gets."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.given = torch.from_numpy(rng.normal(size=(FRAMES, CLASSES, 4, 6))).float()
        self.classes = upsample(self.given, SIZE_PX).argmax(1).to(torch.uint8)

    def logits_and_classes(self, images_BHW3: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        shown = images_BHW3[:, 0, 0, 0].astype(int)
        return self.given[shown], self.classes[shown]


def by_hand(predicted: np.ndarray, labels: np.ndarray) -> tuple[float, list[float]]:
    """(overall_acc, IoU of each class), by counting sets of pixels."""
    valid = labels != IGNORE
    hits = (predicted == labels)[valid].mean()
    iou = []
    for k in range(CLASSES):
        truth, found = (labels == k) & valid, (predicted == k) & valid
        iou.append((truth & found).sum() / (truth | found).sum())
    return float(hits), iou


def test_metrics_equal_those_counted_by_hand(split):
    predictor = FakePredictor()
    metrics = evaluate(predictor, split, CLASSES, 2).metrics
    accuracy, iou = by_hand(predictor.classes.numpy(), split.labels)
    assert metrics["overall_acc"] == pytest.approx(accuracy)
    assert metrics["class_iou"] == pytest.approx(iou)
    assert metrics["mean_iou"] == pytest.approx(np.mean(iou))


def test_perfect_predictor_scores_1(split):
    perfect = FakePredictor()
    perfect.classes = torch.from_numpy(np.where(split.labels == IGNORE, 0, split.labels).astype(np.uint8))
    metrics = evaluate(perfect, split, CLASSES, 2).metrics
    assert [metrics[key] for key in ("overall_acc", "mean_acc", "freqw_acc", "mean_iou")] == [1.0] * 4


def test_mean_loss_is_the_cross_entropy_of_all_valid_pixels(split):
    predictor = FakePredictor()
    log_p = upsample(predictor.given.double(), SIZE_PX).log_softmax(1).numpy()
    valid = split.labels != IGNORE
    frame, y, x = np.nonzero(valid)
    expected = -log_p[frame, split.labels[valid], y, x].mean()
    assert evaluate(predictor, split, CLASSES, 2).metrics["mean_loss"] == pytest.approx(expected, rel=1e-6)


def test_mean_loss_is_the_focal_loss_where_params_name_it(split):
    predictor = FakePredictor()
    p = upsample(predictor.given.double(), SIZE_PX).softmax(1).numpy()
    valid = split.labels != IGNORE
    frame, y, x = np.nonzero(valid)
    own = p[frame, split.labels[valid], y, x]
    found = evaluate(predictor, split, CLASSES, 2, loss=LabelLoss("focal", 2.0)).metrics["mean_loss"]
    assert found == pytest.approx(float((-((1 - own) ** 2) * np.log(own)).mean()), rel=1e-6)


def test_class_maps_of_the_predictor_are_scored_instead_of_its_logits(split):
    """An ONNX graph makes its own class maps, and those are shipped."""
    predictor = FakePredictor()
    predictor.given = -predictor.given
    accuracy, iou = by_hand(predictor.classes.numpy(), split.labels)
    metrics = evaluate(predictor, split, CLASSES, 2).metrics
    assert metrics["overall_acc"] == pytest.approx(accuracy)
    assert metrics["class_iou"] == pytest.approx(iou)


def test_arrays_on_disk_and_in_memory_score_the_same(split, tmp_path):
    mapped = []
    for name in ("images", "labels"):
        np.save(tmp_path / f"{name}.npy", getattr(split, name))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    on_disk = evaluate(FakePredictor(), Split(*mapped, split.names), CLASSES, 2).metrics
    assert on_disk == evaluate(FakePredictor(), split, CLASSES, 2).metrics


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_batch_size_does_not_matter(split, batch_size):
    teacher = FakePredictor().classes.numpy()[::-1]
    metrics, expected = (
        evaluate(FakePredictor(), split, CLASSES, size, teacher_classes=lambda i: teacher[i]).metrics
        for size in (batch_size, 2)
    )
    assert metrics.pop("mean_loss") == pytest.approx(expected.pop("mean_loss"), rel=1e-6)
    assert metrics == expected


def test_agreement_counts_void_pixels_too(split):
    predictor = FakePredictor()
    teacher = predictor.classes.numpy().copy()
    teacher[1, :4] += 1  # half of one frame in five
    metrics = evaluate(predictor, split, CLASSES, 2, teacher_classes=lambda i: teacher[i]).metrics
    assert metrics["teacher_agreement"] == pytest.approx(0.9)


def test_without_a_teacher_there_is_no_agreement(split):
    assert "teacher_agreement" not in evaluate(FakePredictor(), split, CLASSES, 2).metrics


def test_kept_class_maps_are_returned_by_index(split):
    predictor = FakePredictor()
    kept = evaluate(predictor, split, CLASSES, 2, keep=[0, 3]).classes
    assert sorted(kept) == [0, 3]
    assert np.array_equal(kept[3], predictor.classes[3].numpy())


def test_on_frame_is_called_for_each_frame_in_order(split):
    predictor, seen = FakePredictor(), []
    evaluate(predictor, split, CLASSES, 2, on_frame=lambda *frame: seen.append(frame))
    assert [index for index, _, _ in seen] == list(range(FRAMES))
    assert np.array_equal(np.stack([classes for _, classes, _ in seen]), predictor.classes.numpy())
    for index, classes, counts in seen:
        valid = split.labels[index] != IGNORE
        expected = np.zeros((CLASSES, CLASSES), np.int64)
        np.add.at(expected, (split.labels[index][valid], classes[valid]), 1)
        assert np.array_equal(counts, expected)


def test_without_valid_pixels_metrics_are_none(split):
    void = Split(split.images, np.full_like(split.labels, IGNORE), split.names)
    metrics = evaluate(FakePredictor(), void, CLASSES, 2).metrics
    assert metrics["mean_loss"] is metrics["overall_acc"] is metrics["mean_iou"] is None


def a_net() -> torch.nn.Module:
    torch.manual_seed(0)
    parts = torch.nn.Conv2d(3, CLASSES, 2, 2), torch.nn.BatchNorm2d(CLASSES), torch.nn.Dropout(0.5)
    return torch.nn.Sequential(*parts).train()


def test_torch_network_predicts_in_eval_mode(split):
    net = a_net()
    logits = TorchPredictor(net, COMPUTE).logits(split.images[:2])
    with torch.no_grad():
        assert torch.equal(logits, net.eval()(normalize(torch.from_numpy(split.images[:2]))))


class WithClasses:
    """Gives the logits of another predictor, and the class maps that they say."""

    def __init__(self, predictor: TorchPredictor) -> None:
        self.predictor = predictor

    def logits_and_classes(self, images_BHW3: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.predictor.logits(images_BHW3)
        return logits, upsample(logits, SIZE_PX).argmax(1).to(torch.uint8)


@pytest.mark.parametrize("loss", [LabelLoss(), LabelLoss("focal", 2.0)])
def test_logits_alone_are_scored_by_the_classes_that_they_give(split, loss):
    predictor = TorchPredictor(a_net(), COMPUTE)
    alone, with_classes = (
        evaluate(each, split, CLASSES, 2, loss=loss, keep=[4]) for each in (predictor, WithClasses(predictor))
    )
    assert alone.metrics == with_classes.metrics
    assert np.array_equal(alone.classes[4], with_classes.classes[4])


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 100, 500])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 100, 1000])
def test_evenly_spaced_frames_are_unique_and_ordered(frames, count):
    found = evenly_spaced(frames, count)
    assert found == sorted(set(found))
    assert len(found) == min(count, frames)
    assert all(0 <= index < frames for index in found)


def test_evenly_spaced_gaps_differ_by_1_at_most():
    gaps = np.diff(evenly_spaced(500, 7))
    assert gaps.max() - gaps.min() <= 1


def test_evenly_spaced_frames_are_centred():
    assert evenly_spaced(9, 3) == [1, 4, 7]
