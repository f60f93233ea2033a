"""ONNX files of DDRNet and PIDNet: torch's classes at any size, in int8 too, without the auxiliary heads."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import OnnxPredictor, write_float32, write_int8
from segdistill.export.wrapper import PackedStem
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


@pytest.mark.parametrize("size_px", [(16, 24), (15, 21), (14, 26)])
def test_first_layer_of_int8_pads_bytes_with_the_mean_colour(size_px):
    torch.manual_seed(0)
    conv, images = nn.Conv2d(3, 8, 3, 2, 1), torch.randint(0, 256, (2, *size_px, 3), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    colour = (255 * mean).round()
    padded = colour.expand(2, 3, size_px[0] + 2, size_px[1] + 2).clone()
    padded[:, :, 1:-1, 1:-1] = images.permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = F.relu(F.conv2d((padded / 255 - mean) / std, conv.weight, conv.bias, stride=2))
        found = PackedStem(conv, True, F.relu)(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        # Only the border differs from zeros around normalised pixels, by what half a byte is.
        exact = F.relu(conv((images.permute(0, 3, 1, 2) / 255 - mean) / std))
        assert (found - exact)[:, :, 1:-1, 1:-1].abs().max() < 1e-4 < (found - exact).abs().max() < 0.02


@pytest.mark.parametrize("size_px", [TRACED_PX, (96, 72), (60, 76)])
def test_int8_gives_about_the_logits_of_float32(written, size_px):
    """With random weights many logits are close, so that few classes agree."""
    images = frames(2, *size_px, seed=30)
    (logits, classes), (expected, _) = (
        OnnxPredictor(path, 1).logits_and_classes(images) for path in (written.int8, written.float32)
    )
    assert (logits - expected).norm() < 0.45 * expected.norm()
    assert torch.equal(classes, classes_of(logits, size_px))


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
