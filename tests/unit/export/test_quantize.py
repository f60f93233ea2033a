"""Layers in float32 of an int8 file: onnxruntime computes them as the file says, however it optimises the graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from segdistill.export.onnx_file import quantizer_of
from segdistill.nets.onnx_session import INPUT, OUTPUTS, open_session

pytestmark = pytest.mark.usefixtures("one_thread")
CHANNELS, FRAME_PX = 8, (64, 96)
LAYERS = {
    "convolution": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "without a bias": lambda: nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2),
}


class Net(nn.Module):
    """Four layers; `middle` has one large channel, so that one scale for all channels leaves little of the others."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 4, 4)
        self.middle = middle
        self.third = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.last = nn.Conv2d(CHANNELS, 5, 1)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.last(self.third(self.middle(self.first(images_BCHW).relu()).relu()).relu())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("is_float", [True, False], ids=["in float32", "in int8"])
def test_onnxruntime_does_not_quantise_layers_in_float(kind, is_float):
    torch.manual_seed(0)
    net = Net(LAYERS[kind]()).eval()
    with torch.no_grad():
        net.middle.weight.select(int(isinstance(net.middle, nn.ConvTranspose2d)), 0).mul_(100)
        net.third.weight[:, 0] /= 100  # else the others would not matter
    images = np.random.default_rng(0).integers(0, 256, (2, *FRAME_PX, 3), np.uint8)
    quantizer = quantizer_of(net, 18, FRAME_PX)
    quantizer.calibrate(images)
    middle = next(node.name for node in quantizer.model.graph.node if node.name.startswith("/net/middle"))
    file = quantizer.quantised(float_nodes=[middle] if is_float else []).SerializeToString()
    as_written = onnxruntime.SessionOptions()
    as_written.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    literal = onnxruntime.InferenceSession(file, as_written, providers=["CPUExecutionProvider"])
    expected, found = (session.run([OUTPUTS[1]], {INPUT: images})[0] for session in (literal, open_session(file, 1)))
    # Sums that are rounded in another order move a few activations by a step of int8.
    assert np.abs(found - expected).mean() < 0.01 * expected.std()
