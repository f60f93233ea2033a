"""One evaluation for every engine, against figures written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.data.prepared import Split
from segdistill.data.transforms import normalize
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.resize import upsample
from segdistill.scoring.evaluate import evaluate, evenly_spaced
from segdistill.scoring.label_losses import IGNORE

COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)
FRAMES, SIZE_PX, CLASSES = 5, (8, 12), 4


@pytest.fixture(scope="module")
def split() -> Split:
    """Frame i starts with the grey level i, so that a predictor knows which one it sees; some pixels are void."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, (FRAMES, *SIZE_PX)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = IGNORE
    labels[3, 2:] = IGNORE  # frames differ in how much is valid
    images = rng.integers(0, 256, (FRAMES, *SIZE_PX, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(FRAMES)
    return Split(images, labels, tuple(f"frame{i}" for i in range(FRAMES)))


class FakePredictor:
    """Gives prescribed logits (N, C, h, w) and classes (N, H, W) for the frames it is shown."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self.logits = torch.from_numpy(rng.normal(size=(FRAMES, CLASSES, 4, 6))).float()
        self.classes = upsample(self.logits, SIZE_PX).argmax(1).to(torch.uint8)

    def __call__(self, images_BHW3: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        shown = images_BHW3[:, 0, 0, 0].astype(int)
        return self.logits[shown], self.classes[shown]


def by_hand(predicted: np.ndarray, labels: np.ndarray) -> tuple[float, list[float]]:
    """(overall_acc, IoU of each class), by counting sets of pixels."""
    valid = labels != IGNORE
    hits = (predicted == labels)[valid].mean()
    iou = []
    for k in range(CLASSES):
        truth, found = (labels == k) & valid, (predicted == k) & valid
        iou.append((truth & found).sum() / (truth | found).sum())
    return float(hits), iou


def test_figures_equal_those_counted_by_hand(split):
    predictor = FakePredictor()
    figures = evaluate(predictor, split, CLASSES, 2).figures
    accuracy, iou = by_hand(predictor.classes.numpy(), split.labels)
    assert figures["overall_acc"] == pytest.approx(accuracy)
    assert figures["class_iou"] == pytest.approx(iou)
    assert figures["mean_iou"] == pytest.approx(np.mean(iou))


def test_a_perfect_predictor_scores_1(split):
    perfect = FakePredictor()
    perfect.classes = torch.from_numpy(np.where(split.labels == IGNORE, 0, split.labels).astype(np.uint8))
    figures = evaluate(perfect, split, CLASSES, 2).figures
    assert [figures[key] for key in ("overall_acc", "mean_acc", "freqw_acc", "mean_iou")] == [1.0] * 4


def test_mean_loss_is_the_cross_entropy_of_all_valid_pixels(split):
    predictor = FakePredictor()
    log_p = upsample(predictor.logits.double(), SIZE_PX).log_softmax(1).numpy()
    valid = split.labels != IGNORE
    frame, y, x = np.nonzero(valid)
    expected = -log_p[frame, split.labels[valid], y, x].mean()
    assert evaluate(predictor, split, CLASSES, 2).figures["mean_loss"] == pytest.approx(expected, rel=1e-6)


def test_focal_loss_is_told_where_it_is_trained_with(split):
    predictor = FakePredictor()
    p = upsample(predictor.logits.double(), SIZE_PX).softmax(1).numpy()
    valid = split.labels != IGNORE
    frame, y, x = np.nonzero(valid)
    own = p[frame, split.labels[valid], y, x]
    found = evaluate(predictor, split, CLASSES, 2, loss_kind="focal", focal_gamma=2.0).figures["mean_loss"]
    assert found == pytest.approx(float((-((1 - own) ** 2) * np.log(own)).mean()), rel=1e-6)


def test_classes_are_scored_as_they_come(split):
    """Those of an ONNX file are made by its own graph; what its logits say is not asked."""
    predictor = FakePredictor()
    predictor.logits = -predictor.logits
    accuracy, iou = by_hand(predictor.classes.numpy(), split.labels)
    figures = evaluate(predictor, split, CLASSES, 2).figures
    assert figures["overall_acc"] == pytest.approx(accuracy)
    assert figures["class_iou"] == pytest.approx(iou)


def test_arrays_on_disk_and_in_memory_give_the_same(split, tmp_path):
    mapped = []
    for name in ("images", "labels"):
        np.save(tmp_path / f"{name}.npy", getattr(split, name))
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    on_disk = evaluate(FakePredictor(), Split(*mapped, split.names), CLASSES, 2).figures
    assert on_disk == evaluate(FakePredictor(), split, CLASSES, 2).figures


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_batch_size_does_not_matter(split, batch_size):
    teacher = FakePredictor().classes.numpy()[::-1]
    figures, expected = (
        evaluate(FakePredictor(), split, CLASSES, size, teacher_classes=lambda i: teacher[i]).figures
        for size in (batch_size, 2)
    )
    assert figures.pop("mean_loss") == pytest.approx(expected.pop("mean_loss"), rel=1e-6)
    assert figures == expected


def test_agreement_counts_all_pixels_void_ones_too(split):
    predictor = FakePredictor()
    teacher = predictor.classes.numpy().copy()
    teacher[1, :4] += 1  # half of one frame in five
    figures = evaluate(predictor, split, CLASSES, 2, teacher_classes=lambda i: teacher[i]).figures
    assert figures["teacher_agreement"] == pytest.approx(0.9)


def test_without_a_teacher_there_is_no_agreement(split):
    assert "teacher_agreement" not in evaluate(FakePredictor(), split, CLASSES, 2).figures


def test_kept_frames_come_back_by_index(split):
    predictor = FakePredictor()
    kept = evaluate(predictor, split, CLASSES, 2, keep=[0, 3]).classes
    assert sorted(kept) == [0, 3]
    assert np.array_equal(kept[3], predictor.classes[3].numpy())


def test_every_frame_is_handed_on_in_order(split):
    predictor, seen = FakePredictor(), []
    evaluate(predictor, split, CLASSES, 2, on_frame=lambda *frame: seen.append(frame))
    assert [index for index, _, _ in seen] == list(range(FRAMES))
    assert np.array_equal(np.stack([classes for _, classes, _ in seen]), predictor.classes.numpy())
    for index, classes, counts in seen:
        valid = split.labels[index] != IGNORE
        expected = np.zeros((CLASSES, CLASSES), np.int64)
        np.add.at(expected, (split.labels[index][valid], classes[valid]), 1)
        assert np.array_equal(counts, expected)


def test_nothing_valid_has_no_figures(split):
    void = Split(split.images, np.full_like(split.labels, IGNORE), split.names)
    figures = evaluate(FakePredictor(), void, CLASSES, 2).figures
    assert figures["mean_loss"] is figures["overall_acc"] is figures["mean_iou"] is None


def a_net() -> torch.nn.Module:
    torch.manual_seed(0)
    parts = torch.nn.Conv2d(3, CLASSES, 2, 2), torch.nn.BatchNorm2d(CLASSES), torch.nn.Dropout(0.5)
    return torch.nn.Sequential(*parts).train()


def test_a_torch_net_predicts_in_eval_mode(split):
    net = a_net()
    logits, classes = TorchPredictor(net, COMPUTE)(split.images[:2])
    with torch.no_grad():
        expected = net.eval()(normalize(torch.from_numpy(split.images[:2])))
    assert torch.equal(logits, expected)
    assert torch.equal(classes, upsample(expected, SIZE_PX).argmax(1).to(torch.uint8))


@pytest.mark.parametrize("loss_kind", ["cross_entropy", "focal"])
def test_a_torch_net_is_scored_by_what_it_predicts(split, loss_kind):
    predictor = TorchPredictor(a_net(), COMPUTE)
    found = evaluate(predictor, split, CLASSES, 2, loss_kind=loss_kind, focal_gamma=2.0, keep=[4])
    plain = evaluate(
        lambda images: predictor(images), split, CLASSES, 2, loss_kind=loss_kind, focal_gamma=2.0, keep=[4]
    )
    assert found.figures == plain.figures
    assert np.array_equal(found.classes[4], plain.classes[4])


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 100, 500])
@pytest.mark.parametrize("count", [0, 1, 2, 6, 100, 1000])
def test_spread_is_unique_ordered_and_within(frames, count):
    found = evenly_spaced(frames, count)
    assert found == sorted(set(found))
    assert len(found) == min(count, frames)
    assert all(0 <= index < frames for index in found)


def test_spread_is_even():
    gaps = np.diff(evenly_spaced(500, 7))
    assert gaps.max() - gaps.min() <= 1


def test_spread_has_no_side():
    assert evenly_spaced(9, 3) == [1, 4, 7]
