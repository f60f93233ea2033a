"""The factored decoder convolution against its definition: resize, join, convolve."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segdistill.nets.joined_conv import joined_conv3x3
from segdistill.nets.registry import build

pytestmark = pytest.mark.usefixtures("one_thread")


def by_definition(low, deep, weight):
    resized = F.interpolate(deep, size=low.shape[-2:], mode="bilinear", align_corners=False)
    return F.conv2d(torch.cat([low, resized], dim=1), weight, padding=1)


@pytest.mark.parametrize(
    ("small", "large"),
    [((4, 4), (16, 16)), ((3, 5), (12, 20)), ((4, 4), (4, 4)), ((3, 2), (7, 5)), ((1, 1), (4, 4)), ((1, 6), (2, 23))],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_equal_the_definition(small, large, memory_format):
    torch.manual_seed(0)
    sizes = ((2, 3, *large), (2, 5, *small), (4, 8, 3, 3))
    tensors = [torch.randn(size, dtype=torch.float64).to(memory_format=memory_format) for size in sizes]
    direction = torch.randn(2, 4, *large, dtype=torch.float64)
    found, expected = [], []
    for form, results in ((joined_conv3x3, found), (by_definition, expected)):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        output = form(*inputs)
        output.backward(direction)
        results += [output.detach(), *(tensor.grad for tensor in inputs)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("arch", ["deeplabv3plus_mobilenet", "deeplabv3plus_mobilenet_separable"])
def test_traced_network_equals_the_eager_one(arch):
    torch.manual_seed(0)
    net, images = build(arch, 19).double().eval(), torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        traced = torch.jit.trace(net, torch.randn(1, 3, 32, 32, dtype=torch.float64), check_trace=False)
        torch.testing.assert_close(traced(images), net(images), rtol=1e-9, atol=1e-9)
