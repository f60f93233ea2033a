"""The parts of an ONNX file that compute in another order than torch does: classes of pixels, decoder, first layer."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from segdistill.data.transforms import normalize
from segdistill.export.argmax_graph import add_classes
from segdistill.export.decoder import FactoredDecoder, axis_products
from segdistill.export.wrapper import ExportWrapper
from segdistill.nets.heads import V3PlusHead, plain_conv3x3
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 5


def classes_session(stride: int) -> onnxruntime.InferenceSession:
    """Only the part that `add_classes` adds: logits and a frame, for its size, in; classes out."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    given = helper.make_tensor_value_info("given", TensorProto.FLOAT, ["N", CLASSES, "h", "w"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES, "h", "w"])
    graph = helper.make_graph([helper.make_node("Identity", ["given"], ["logits"])], "g", [image, given], [logits])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    add_classes(model, stride)
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def logits_of(kind: str, count: int, rows: int, columns: int) -> torch.Tensor:
    """Noise, where no two cells agree; streets of a few regions; or one class everywhere."""
    generator = torch.Generator().manual_seed(rows * columns)
    if kind == "noise":
        return torch.randn(count, CLASSES, rows, columns, generator=generator)
    coarse = torch.randn(count, CLASSES, 2, 2, generator=generator)
    smooth = F.interpolate(coarse, size=(rows, columns), mode="bilinear", align_corners=True)
    return smooth if kind == "street" else smooth + 100 * torch.eye(CLASSES)[2].view(1, -1, 1, 1)


@pytest.mark.parametrize("kind", ["noise", "street", "one class"])
@pytest.mark.parametrize(
    ("stride", "size_px"),
    [(4, (32, 48)), (4, (33, 47)), (4, (4, 4)), (8, (32, 48)), (16, (32, 48)), (16, (48, 40)), (16, (16, 16))],
)
def test_classes_are_those_of_torchs_upsampling(kind, stride, size_px):
    logits = logits_of(kind, 2, *(-(-side // stride) for side in size_px))
    frames = np.zeros((2, *size_px, 3), np.uint8)
    (found,) = classes_session(stride).run(["classes"], {"given": logits.numpy(), "image": frames})
    exact = upsample(logits.double(), size_px)
    chosen = exact.gather(1, torch.from_numpy(found).long()[:, None])[:, 0]
    # Two classes may be equally large; which one is named is then a matter of rounding.
    assert float((exact.amax(1) - chosen).max()) < 1e-5
    assert (torch.from_numpy(found) == exact.argmax(1)).float().mean() > 0.999


@pytest.mark.parametrize(("small", "large"), [(4, 16), (5, 20), (3, 7), (1, 4), (16, 64), (6, 23)])
def test_products_along_an_axis_resize_and_shift(small, large):
    cells, weights, blocks = axis_products(torch.tensor(small), torch.tensor(large))
    eye = torch.eye(small)
    resized = F.interpolate(eye[None], size=large, mode="linear", align_corners=False)[0]  # (small, large)
    padded = F.pad(resized, (1, 1))
    reach = len(cells) // int(blocks)
    found = torch.zeros(large, 3, small)
    for block, of_block in enumerate(weights):
        of_block = of_block.reshape(len(of_block), reach, 3)
        for place, cell in enumerate(cells.reshape(int(blocks), reach)[block]):
            rows = slice(block * len(of_block), (block + 1) * len(of_block))
            found[rows, :, cell] += of_block[:, place]
    for tap in range(3):
        torch.testing.assert_close(found[:, tap], padded[:, tap : tap + large].T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [((4, 6), (16, 24)), ((3, 5), (11, 17))])
def test_the_factored_decoder_is_the_head(sizes):
    torch.manual_seed(0)
    backbone = torch.nn.Module()
    backbone.low_channels, backbone.out_channels = 6, 8
    head = V3PlusHead(backbone, CLASSES, 16, plain_conv3x3).train()
    low, out = torch.randn(3, 6, *sizes[1]), torch.randn(3, 8, *sizes[0])
    with torch.no_grad():
        head(low, out)  # batch norm gets statistics that are not its first ones
        head.eval()
        expected = head(low, out)
        torch.testing.assert_close(FactoredDecoder(head)(low, out), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ["deeplabv3plus_mobilenet", "deeplabv3_mobilenet_lite", "deeplabv3plus_resnet50"])
@pytest.mark.parametrize("size_px", [(64, 96), (72, 89)])
def test_a_net_that_reads_bytes_gives_the_same_logits(arch, size_px):
    torch.manual_seed(0)
    net = build(arch, CLASSES).eval()
    frames = torch.randint(0, 256, (2, *size_px, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(normalize(frames))
        for from_bytes in (False, True):
            found = ExportWrapper(net, from_bytes)(frames)
            scale = float(expected.abs().max())
            torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)
