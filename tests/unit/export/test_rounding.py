"""Rounding that keeps sums, against torch's convolution and the weights that onnxruntime stores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from segdistill.export import rounding
from segdistill.export.onnx_file import quantizer_of
from segdistill.export.rounding import MAX_WEIGHT, keep_sums

pytestmark = pytest.mark.usefixtures("one_thread")
CHANNELS, FRAME_PX = 8, (32, 48)
SHAPES = {"3x3": (16, 32, 3, 3), "depthwise": (32, 1, 3, 3), "1x1": (16, 64, 1, 1), "packed stem": (16, 12, 3, 2)}


class Net(nn.Module):
    """Three convolutions; the second is grouped, and the third, which computes the logits, stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, CHANNELS, 4, 4)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=4, bias=False)
        self.last = nn.Conv2d(CHANNELS, 5, 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.last(F.relu(self.second(F.relu(self.first(images_BCHW)))))


@pytest.fixture
def quantizer():
    quantizer = quantizer_of(Net().eval(), 18, FRAME_PX)
    quantizer.calibrate(np.random.default_rng(0).integers(0, 256, (2, *FRAME_PX, 3), np.uint8))
    return quantizer


@pytest.fixture(params=SHAPES)
def weights(request) -> np.ndarray:
    drawn = np.random.default_rng(1).normal(size=SHAPES[request.param]).astype(np.float32)
    drawn[3] = 0
    if request.param == "packed stem":
        drawn[:8, :, :, 1] = 0
    return drawn


def step(weights: np.ndarray) -> np.ndarray:
    """The distance of two int8 values of each output channel, (O, 1, 1, 1)."""
    largest = np.abs(weights).max((1, 2, 3), keepdims=True)
    return np.where(largest > 0, largest, 1) / MAX_WEIGHT


def test_errors_of_a_channel_add_up_to_half_a_step_at_most(weights):
    errors = (keep_sums(weights).astype(np.float64) - weights) / step(weights)
    assert np.abs(errors).max() < 1
    assert np.abs(errors.sum((1, 2, 3))).max() < 0.5 + 1e-3
    assert np.abs(errors.sum((2, 3))).max() < 1 + 1e-3
    nearest = np.round(weights / step(weights)) - weights / step(weights)
    assert np.abs(nearest.sum((1, 2, 3))).max() > 0.7
    assert (errors**2).mean() < 1.3 * (nearest**2).mean()


def test_largest_weights_and_zeros_stay(weights):
    rounded = keep_sums(weights)
    is_largest = np.abs(weights) == np.abs(weights).max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(rounded[is_largest], weights[is_largest], rtol=1e-6)
    assert not rounded[weights == 0].any()


def test_a_brighter_image_moves_no_output_by_more_than_half_a_step():
    weights = np.random.default_rng(2).normal(size=(64, 3, 3, 3)).astype(np.float32)
    bright = torch.full((1, 3, 3, 3), 200.0)

    def output(weights: np.ndarray) -> np.ndarray:
        return F.conv2d(bright, torch.from_numpy(weights)).numpy()[0, :, 0, 0]

    half_a_step = 200 * step(weights)[:, 0, 0, 0] / 2
    assert (np.abs(output(keep_sums(weights)) - output(weights)) < half_a_step + 1e-2).all()
    nearest = (np.round(weights / step(weights)) * step(weights)).astype(np.float32)
    assert (np.abs(output(nearest) - output(weights)) > half_a_step).mean() > 0.5


def convolutions(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in graph.node if node.op_type == "Conv"}


def constant(graph: onnx.GraphProto, name: str) -> np.ndarray:
    (found,) = [numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == name]
    return found


def stored_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The weights of the int8 convolutions, as floats, by name of the node."""
    producers = {node.output[0]: node for node in model.graph.node}
    found = {}
    for name, node in convolutions(model.graph).items():
        if node.input[1] in producers:
            stored, scale, _ = (constant(model.graph, given) for given in producers[node.input[1]].input)
            assert stored.dtype == np.int8
            found[name] = stored * scale[:, None, None, None]
    return found


def test_file_has_the_rounded_weights(quantizer):
    first, second, _ = convolutions(quantizer.model.graph).values()
    found = stored_weights(quantizer.quantised())
    assert set(found) == {first.name, second.name}
    for node in (first, second):
        expected = keep_sums(constant(quantizer.model.graph, node.input[1]))
        np.testing.assert_allclose(found[node.name], expected, atol=1e-6)


def test_weights_are_rounded_once_for_all_gates(quantizer, monkeypatch):
    first, second, _ = convolutions(quantizer.model.graph)
    shapes = []

    def counted(weights_OIhw):
        shapes.append(weights_OIhw.shape)
        return keep_sums(weights_OIhw)

    monkeypatch.setattr(rounding, "keep_sums", counted)
    gates = [{}, {"float_nodes": [first]}, {"only": [second]}, {}]
    models = [quantizer.quantised(**gate).SerializeToString() for gate in gates]
    assert len(shapes) == 2
    for gate, model in zip(gates, models, strict=True):
        quantizer._rounded.clear()
        assert quantizer.quantised(**gate).SerializeToString() == model


def test_layers_in_float_keep_their_weights(quantizer):
    first, second, _ = convolutions(quantizer.model.graph).values()
    for model, float_layer in (
        (quantizer.quantised(float_nodes=[first.name]), first),
        (quantizer.quantised(only=[first.name]), second),
    ):
        assert set(stored_weights(model)) == {first.name, second.name} - {float_layer.name}
        kept = constant(model.graph, convolutions(model.graph)[float_layer.name].input[1])
        np.testing.assert_array_equal(kept, constant(quantizer.model.graph, float_layer.input[1]))


class ChannelAttention(nn.Module):
    """Weigh the channels by a convolution over them, which has one dimension (ECA)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = (
            nn.Conv2d(3, CHANNELS, 4, 4),
            nn.Conv1d(1, 1, 3, padding=1),
            nn.Conv2d(8, 5, 1),
        )

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(images_BCHW))
        return self.last(x * self.conv(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None])


def test_a_convolution_of_one_dimension_is_rounded_as_one_of_two():
    weights = np.random.default_rng(3).normal(size=(16, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(keep_sums(weights), keep_sums(weights[:, :, None])[:, :, 0])
    quantizer = quantizer_of(ChannelAttention().eval(), 18, FRAME_PX)
    quantizer.calibrate(np.zeros((1, *FRAME_PX, 3), np.uint8))
    stored = [numpy_helper.to_array(tensor) for tensor in quantizer.quantised().graph.initializer]
    assert any(one.dtype == np.int8 and one.shape == (1, 1, 3) for one in stored)
