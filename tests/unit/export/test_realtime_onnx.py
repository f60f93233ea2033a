"""ONNX files of DDRNet and PIDNet: torch's classes at any size, in int8 too, without the auxiliary heads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import OnnxPredictor, write_float32, write_int8
from segdistill.formats.header import Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build, shipped_parameters
from segdistill.nets.resize import upsample
from segdistill.scoring.evaluate import classes_of

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, TRACED_PX, OPSET = 7, (64, 128), 18
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise uint8 (N, H, W, 3)."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (count, 3, 4, 6)))
    return upsample(coarse, (height, width)).permute(0, 2, 3, 1).numpy().astype(np.uint8)


class Written:
    """A random network whose batch norms know their inputs, and its files."""

    def __init__(self, arch: str, folder) -> None:
        torch.manual_seed(0)
        self.net, self.header = build(arch, CLASSES, 8).train(), Header.of_net(arch, CLASSES, 8)
        with torch.no_grad():
            for seed in range(8):
                self.net(normalize(torch.from_numpy(frames(4, *TRACED_PX, seed=seed))))
        self.net.eval()
        self.float32, self.int8 = folder / "float32.onnx", folder / "int8.onnx"
        write_float32(self.float32, self.net, self.header, OPSET, TRACED_PX)
        write_int8(self.int8, self.net, self.header, OPSET, frames(4, *TRACED_PX, seed=20))


@pytest.fixture(scope="module", params=["ddrnet23_slim", "pidnet_s"])
def written(request, tmp_path_factory):
    return Written(request.param, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 128), (3, 96, 96), (1, 72, 136), (1, 60, 76)])
def test_float32_gives_torchs_logits_at_any_size(written, count, height, width):
    images = frames(count, height, width, seed=9)
    logits, classes = OnnxPredictor(written.float32, 1).logits_and_classes(images)
    expected_logits = TorchPredictor(written.net, COMPUTE).logits(images)
    expected_classes = classes_of(expected_logits, images.shape[1:3])
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert len(expected_classes.unique()) > 1
    assert (classes == expected_classes).float().mean() >= 0.999


@pytest.mark.parametrize("size_px", [TRACED_PX, (96, 72), (60, 76)])
def test_int8_names_the_classes_of_float32_on_most_pixels(written, size_px):
    images = frames(2, *size_px, seed=30)
    classes, expected = (OnnxPredictor(path, 1).classes(images) for path in (written.int8, written.float32))
    assert (classes == expected).mean() > 0.7  # random weights: many logits are close


def test_files_hold_nothing_of_the_auxiliary_heads(written):
    graph = onnx.load(written.float32).graph
    read = {name for node in graph.node for name in node.input} | {
        name
        for node in graph.node
        for attribute in node.attribute
        for inner in attribute.g.node
        for name in inner.input
    }
    assert {tensor.name for tensor in graph.initializer} <= read
    assert not any(head in tensor.name for head in written.net.auxiliary_heads for tensor in graph.initializer)
    # Batch norms that follow a convolution are part of its weights, the others still have four vectors each.
    weights = sum(np.prod(tensor.dims) for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    assert weights < 1.01 * shipped_parameters(written.net)
