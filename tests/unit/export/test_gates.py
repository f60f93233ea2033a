"""The gates of int8: more frames, narrower ranges, layers in float, each with a network that needs it.

The labels are the classes that the float32 file names, so a loss in points is what int8 changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from segdistill.data.prepared import Split
from segdistill.data.transforms import normalize
from segdistill.export.gates import FLOAT_LAYERS, MIN_MAX, MORE_FRAMES, write_int8_within
from segdistill.export.onnx_file import OnnxPredictor, write_float32, write_int8
from segdistill.export.ranges import SEARCHES, Histogram, least_squares, percentile
from segdistill.formats.classes import IGNORE
from segdistill.formats.header import Header
from segdistill.nets.resize import upsample
from segdistill.params.model import ExportParams

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, FRAME_PX, FRAMES = 5, (128, 192), 8
HEADER = Header.of_net("deeplabv3_mobilenet_lite", CLASSES, 16)  # for its stride; the network is another
SPOT = (slice(32, 36), slice(48, 52))  # one cell of the first layer


class Net(nn.Module):
    """Five layers to logits at stride 16. `narrow` is followed by no activation, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 2, 2), nn.ReLU())
        self.narrow = nn.Conv2d(16, 8, 1)
        self.deep = nn.Sequential(nn.Conv2d(8, 32, 2, 2), nn.ReLU())
        self.last = nn.Conv2d(32, CLASSES, 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.last(self.deep(self.narrow(self.wide(self.first(images_BCHW)))))


class Case(NamedTuple):
    """A network, its float32 file, and frames with the classes that the file names, which also calibrate."""

    net: nn.Module
    float32: object
    holdout: Split
    path: object
    train: Split | None = None

    def written(self, max_int8_loss: float | None, calibration_images: int = 4) -> dict:
        export = ExportParams(opset=18, calibration_images=calibration_images, max_int8_loss=max_int8_loss)
        train = self.holdout if self.train is None else self.train
        return write_int8_within(self.path, self.float32, self.net, HEADER, train, self.holdout, export, 1)


@pytest.fixture
def make_case(tmp_path):
    def make(net: nn.Module, images: np.ndarray) -> Case:
        path = tmp_path / "student.onnx"
        write_float32(path, net, HEADER, 18, FRAME_PX)
        labels = OnnxPredictor(path, 1).classes(images)
        assert len(np.unique(labels)) == CLASSES
        labels[:, SPOT[0], SPOT[1]] = IGNORE
        names = tuple(f"frame{number}" for number in range(len(images)))
        return Case(net, path, Split(images, labels, names), tmp_path / "student.int8.onnx")

    return make


def frames(low: int = 0, high: int = 160) -> np.ndarray:
    """Smooth noise uint8 (N, H, W, 3)."""
    coarse = torch.from_numpy(np.random.default_rng(1).uniform(low, high, (FRAMES, 3, 16, 24)))
    return upsample(coarse, FRAME_PX).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def centred(net: Net | None = None) -> Net:
    """The network, with a last layer that makes all classes about equally frequent on `frames()`."""
    net = net or Net()
    with torch.no_grad():
        logits = net(normalize(torch.from_numpy(frames())))
        net.last.bias -= logits.mean((0, 2, 3))
        net.last.weight *= 1 / logits.std((0, 2, 3))[:, None, None, None]
        net.last.bias *= 1 / logits.std((0, 2, 3))
    return net.eval()


def with_large_channel() -> Net:
    """The same function, but one channel of `narrow` is a thousand times as large as the others."""
    net = centred()
    with torch.no_grad():
        net.narrow.weight[0] *= 1000
        net.narrow.bias[0] *= 1000
        net.deep[0].weight[:, 0] /= 1000
    return net


def with_rare_spikes() -> Net:
    """A channel of `narrow` that nothing reads is large where a pixel is white."""
    net = Net()
    with torch.no_grad():
        net.first[0].weight[0] = 1 / 48
        net.first[0].bias[0] = -1.5
        net.wide[0].weight[0] = 0
        net.wide[0].weight[0, 0] = 1
        net.wide[0].bias[0] = 0
        net.wide[0].weight[1:, 0] = 0
        net.narrow.weight[0] = 0
        net.narrow.weight[0, 0] = 20
        net.narrow.bias[0] = 0
        net.narrow.weight[1:, 0] = 0
        net.deep[0].weight[:, 0] = 0
    return centred(net)


def test_first_try_within_the_bound_is_the_plain_file(make_case):
    case = make_case(centred(), frames())
    found = case.written(50.0)
    assert (found["gate"], len(found["tries"])) == (MIN_MAX, 1)
    plain = case.path.with_name("plain.onnx")
    write_int8(plain, case.net, HEADER, 18, case.holdout.images[[1, 3, 5, 7]])
    assert case.path.read_bytes() == plain.read_bytes()


def test_ranges_are_those_of_train_frames(make_case):
    case = make_case(centred(), frames())
    darker = Split(case.holdout.images // 4, case.holdout.labels, case.holdout.names)
    case._replace(train=darker).written(100.0)
    of_train = case.path.with_name("train.onnx")
    write_int8(of_train, case.net, HEADER, 18, darker.images[[1, 3, 5, 7]])
    assert case.path.read_bytes() == of_train.read_bytes()


def test_without_a_bound_nothing_is_measured(make_case):
    found = make_case(with_large_channel(), frames()).written(None)
    assert found == {"gate": MIN_MAX, "max_int8_loss": None, "tries": []}


def test_more_frames_widen_ranges_that_one_frame_left_too_narrow(make_case):
    images = frames()
    images[FRAMES // 2] //= 8  # the one frame of the first try
    found = make_case(centred(), images).written(8.0, calibration_images=1)
    assert (found["gate"], found["calibration_frames"]) == (MORE_FRAMES, 5)
    first, last = (one["holdout_loss"] for one in found["tries"])
    assert first > 20 > 8 > last


def test_narrower_ranges_help_where_spikes_are_rare(make_case):
    images = frames()
    images[3][SPOT] = 255
    found = make_case(with_rare_spikes(), images).written(10.0)
    assert found["gate"] in SEARCHES
    assert found["tries"][0]["holdout_loss"] > 20
    assert found["holdout_loss"] <= 10


def test_layers_in_float_help_where_one_channel_is_large(make_case):
    case = make_case(with_large_channel(), frames())
    found = case.written(8.0)
    assert found["gate"] == FLOAT_LAYERS
    assert {name.split("/")[2] for name in found["float_layers"]} == {"narrow", "deep"}
    assert found["tries"][0]["holdout_loss"] > 20
    assert found["holdout_loss"] <= 8
    assert OnnxPredictor(case.path, 1).header.float_layers == found["float_layers"]


def test_file_is_the_best_try_where_none_is_within_the_bound(make_case, capsys):
    case = make_case(with_large_channel(), frames())
    found = case.written(0.0, calibration_images=8)
    losses = [one["holdout_loss"] for one in found["tries"]]
    assert found["holdout_loss"] == min(losses) > 0
    assert "export.max_int8_loss allows 0" in capsys.readouterr().err
    classes = OnnxPredictor(case.path, 1).classes(case.holdout.images)
    known = case.holdout.labels != IGNORE
    assert (classes == case.holdout.labels)[known].mean() > 0.9


def histogram(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, 2048, (low, high))
    return Histogram(counts, (edges[:-1] + edges[1:]) / 2, low, high)


def test_least_squares_clips_a_value_in_millions_but_not_a_common_one():
    values = np.random.default_rng(0).normal(0, 1, 1_000_000)
    rare, common = values.copy(), values.copy()
    rare[0], common[:5000] = 60, 60
    low, high = least_squares(histogram(rare))
    assert high < 40
    assert -8 < low < -3
    assert least_squares(histogram(common))[1] > 50


def test_least_squares_has_the_least_error_of_all_candidates():
    """Counted by quantising the values, for the ranges that the search chooses among."""
    values = np.concatenate([np.random.default_rng(0).exponential(1, 200_000), [40.0]])

    def error(high: float) -> float:
        step = high / 255
        return float(((np.round(values.clip(0, high) / step) * step - values) ** 2).mean())

    candidates = values.max() * np.arange(1, 33) / 32
    best = min(candidates, key=error)
    _, found = least_squares(histogram(values))
    assert error(found) <= 1.05 * error(best)


def test_percentile_keeps_its_share_and_zero():
    values = np.random.default_rng(0).uniform(2, 3, 100_000)
    low, high = percentile(0.9)(histogram(values))
    assert low == 0
    assert high == pytest.approx(2.95, abs=0.01)
