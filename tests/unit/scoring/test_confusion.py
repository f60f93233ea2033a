"""Metrics against maps counted by hand, and against the official evaluator on PNG files."""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image

from segdistill.prepare.cityscapes import LABEL_ID_OF_TRAIN_ID
from segdistill.scoring.confusion import Confusion


def metrics(predicted, labels, classes=3):
    confusion = Confusion(classes)
    confusion.add(torch.tensor(predicted, dtype=torch.uint8), torch.tensor(labels, dtype=torch.uint8))
    return confusion.metrics()


def test_hand_counted_3x3_map():
    found = metrics([[0, 0, 1], [1, 1, 0], [0, 0, 1]], [[0, 0, 0], [1, 1, 1], [0, 255, 255]])
    # Class 0: 3 of 4 right, 1 false alarm -> 3 / 5. Class 1: 2 of 3 right, 1 false alarm -> 2 / 4. Class 2: nowhere.
    assert found["class_iou"] == [pytest.approx(3 / 5), pytest.approx(2 / 4), None]
    assert found["mean_iou"] == pytest.approx((3 / 5 + 2 / 4) / 2)
    assert found["overall_acc"] == pytest.approx(5 / 7)
    assert found["mean_acc"] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert found["freqw_acc"] == pytest.approx(4 / 7 * 3 / 5 + 3 / 7 * 2 / 4)


def test_absent_class_has_no_iou_but_a_false_alarm_has_0():
    assert metrics([[0, 0]], [[0, 0]])["class_iou"] == [1.0, None, None]
    assert metrics([[0, 2]], [[0, 0]])["class_iou"] == [0.5, None, 0.0]


def test_without_valid_pixels_metrics_are_none():
    found = metrics([[0, 1]], [[255, 255]])
    assert [found[key] for key in ("mean_iou", "overall_acc", "mean_acc", "freqw_acc")] == [None] * 4


def test_counting_in_parts_equals_counting_at_once():
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 19, (4, 8, 8)), rng.choice([*range(19), 255], (4, 8, 8))
    whole, parts = Confusion(19), Confusion(19)
    whole.add(torch.tensor(predicted), torch.tensor(labels))
    for one, other in zip(predicted, labels, strict=True):
        parts.add(torch.tensor(one), torch.tensor(other))
    assert torch.equal(whole.counts, parts.counts)
    assert whole.counts.sum() == (labels != 255).sum()


@pytest.mark.parametrize("classes", [1, 19, 127, 128, 255])
def test_every_pair_of_classes_is_counted_in_its_place(classes):
    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(0, classes, (2, 64, 64)).astype(np.uint8)
    labels[0], predicted[0] = classes - 1, classes - 1
    labels[1] = 255
    confusion = Confusion(classes)
    confusion.add(torch.from_numpy(predicted), torch.from_numpy(labels))
    expected = np.zeros((classes, classes), np.int64)
    np.add.at(expected, (labels[labels != 255], predicted[labels != 255]), 1)
    assert np.array_equal(confusion.counts.numpy(), expected)


def test_counting_does_not_change_its_arguments():
    labels = torch.tensor([0, 1, 255], dtype=torch.int16)
    Confusion(2).add(torch.tensor([0, 0, 1]), labels)
    assert labels.tolist() == [0, 1, 255]


def test_label_that_is_no_class_is_an_assertion_error():
    with pytest.raises(AssertionError, match="neither a class nor void"):
        metrics([[0]], [[3]], classes=3)


def test_official_evaluator_gives_the_same_on_the_same_files(tmp_path):
    pytest.importorskip("cityscapesscripts")
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813

    rng = np.random.default_rng(1)
    confusion, predicted_files, label_files = Confusion(19), [], []
    for frame in range(3):
        # Class 18 is absent, class 17 a false alarm only: the two cases where definitions differ.
        labels = rng.choice([*range(17), 255], (24, 32)).astype(np.uint8)
        predicted = np.where(rng.random((24, 32)) < 0.6, labels, rng.integers(0, 18, (24, 32))).astype(np.uint8)
        predicted[predicted == 255] = 0
        confusion.add(torch.from_numpy(predicted), torch.from_numpy(labels))
        for files, ids, name in ((predicted_files, predicted, "pred"), (label_files, labels, "gtFine_labelIds")):
            path = tmp_path / f"city_000000_{frame:06d}_{name}.png"
            Image.fromarray(LABEL_ID_OF_TRAIN_ID[ids]).save(path)
            files.append(str(path))
    args = argparse.Namespace(**vars(official.args))
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    result = official.evaluateImgLists(predicted_files, label_files, args)
    ours = confusion.metrics()
    assert ours["mean_iou"] == pytest.approx(result["averageScoreClasses"], abs=1e-6)
    from segdistill.prepare.cityscapes import CLASS_NAMES

    for name, iou in zip(CLASS_NAMES, ours["class_iou"], strict=True):
        expected = result["classScores"][name]
        assert (iou is None) == bool(np.isnan(expected))
        assert iou is None or iou == pytest.approx(expected, abs=1e-6)
