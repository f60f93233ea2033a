"""Depthwise convolution for training against torch's own, and against float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdistill.nets import depthwise
from segdistill.nets.depthwise import DepthwiseConv2d, depthwise_conv2d

# (channels, height, width), kernel, stride, dilation, padding
LAYERS = [
    ((6, 20, 20), 3, 1, 2, 0),
    ((6, 21, 17), 3, 1, 2, 2),  # not a whole number of grids
    ((5, 14, 13), 3, 1, 4, 0),
    ((4, 13, 11), 3, 1, 2, 1),  # a padding that is not a whole number of a grid's pixels
    ((4, 16, 20), 3, 1, 6, 6),
    ((4, 16, 13), 3, 1, 12, 12),  # fewer rows than the kernel
    ((4, 9, 9), 3, 1, 18, 18),  # only the kernel's centre reads the image
    ((6, 16, 16), 5, 1, 2, 4),
    ((6, 15, 13), 5, 1, 2, 4),
    ((6, 15, 13), 5, 1, 2, 2),
    ((6, 15, 13), 3, 1, 2, 4),  # more padding than the kernel needs
    ((4, 9, 12), 5, 1, 1, 2),
    ((4, 9, 12), 5, 2, 1, 2),
    ((4, 19, 23), 7, 1, 1, 3),
    ((4, 19, 23), 7, 2, 1, 0),
    ((4, 9, 13), 3, 2, 1, 1),
    ((4, 10, 12), 3, 2, 1, 0),
    ((4, 11, 13), 3, 3, 1, 1),
    ((4, 19, 19), 3, 2, 2, 2),
    ((96, 18, 18), 3, 1, 1, 0),
    ((4, 12, 12), 4, 1, 2, 3),  # no middle
]
SLOW = [layer for layer in LAYERS if layer[1:4] not in ((3, 2, 2), (3, 1, 1), (4, 1, 2))]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the norm of what is compared


def tensors(size, kernel, dtype, batch=2):
    torch.manual_seed(0)
    x = torch.randn(batch, *size).to(memory_format=torch.channels_last).to(dtype).requires_grad_()
    weight = torch.randn(size[0], 1, kernel, kernel).to(dtype).to(torch.promote_types(dtype, torch.float32))
    return x, weight.requires_grad_()


def output_and_gradients(out, x, weight):
    torch.manual_seed(1)
    direction = torch.randn(out.shape)
    direction = direction.to(out.dtype).contiguous(memory_format=torch.channels_last)
    return [out.detach(), *torch.autograd.grad(out, (x, weight), direction)]


def layer_of(conv, size, kernel, stride, dilation, padding):
    torch.manual_seed(0)
    channels = size[0]
    return conv(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_output_and_gradients_equal_those_of_float64(layer, dtype):
    size, kernel, stride, dilation, padding = layer
    x, weight = tensors(size, kernel, dtype)
    found = output_and_gradients(depthwise_conv2d(x, weight, stride, padding, dilation), x, weight)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, weight.dtype]
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    expected = output_and_gradients(F.conv2d(*exact, None, stride, padding, dilation, size[0]), *exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()


@pytest.mark.parametrize("layer", SLOW, ids=str)
def test_gradients_equal_finite_differences(layer):
    size, kernel, stride, dilation, padding = layer
    x, weight = tensors((2, *size[1:]), kernel, torch.float64, batch=1)
    assert torch.autograd.gradcheck(
        lambda *inputs: depthwise_conv2d(*inputs, stride, padding, dilation), (x, weight), fast_mode=True
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_step_equals_that_of_the_torch_layer(layer, precision, monkeypatch):
    monkeypatch.setattr(depthwise, "CPU_HAS_BFLOAT16", True)
    size, kernel = layer[:2]
    results = []
    for conv in (nn.Conv2d, DepthwiseConv2d):
        x, _ = tensors(size, kernel, precision)
        module = layer_of(conv, *layer)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            out = module(x)
        assert out.dtype == precision
        results.append(output_and_gradients(out, x, module.weight))
        assert results[-1][2].dtype == torch.float32
    for theirs, ours in zip(*results, strict=True):
        assert (ours.double() - theirs.double()).norm() <= TOLERANCE[precision] * theirs.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", SLOW, ids=str)
def test_same_bytes_whatever_ran_before(layer, dtype):
    size, kernel, stride, dilation, padding = layer
    x, weight = tensors(size, kernel, dtype)
    first = output_and_gradients(depthwise_conv2d(x, weight, stride, padding, dilation), x, weight)
    for other_size, other_kernel, *other in LAYERS[:4]:
        other_stride, other_dilation, other_padding = other
        before = tensors(other_size, other_kernel, torch.float32)
        depthwise_conv2d(*before, other_stride, other_padding, other_dilation).sum().backward()
    again = output_and_gradients(depthwise_conv2d(x, weight, stride, padding, dilation), x, weight)
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_bfloat16_without_instructions_for_it_is_computed_in_float32(monkeypatch):
    monkeypatch.setattr(depthwise, "CPU_HAS_BFLOAT16", False)
    module = layer_of(DepthwiseConv2d, (4, 9, 12), 3, 1, 1, 1)
    x, _ = tensors((4, 9, 12), 3, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x)
    assert torch.equal(out, F.conv2d(x.float(), module.weight, None, 1, 1, 1, 4).bfloat16())


@pytest.mark.parametrize("layer", SLOW, ids=str)
def test_evaluation_graphs_and_other_memory_keep_torchs_way(layer):
    theirs, ours = (layer_of(conv, *layer) for conv in (nn.Conv2d, DepthwiseConv2d))
    x = torch.randn(2, *layer[0]).to(memory_format=torch.channels_last)
    traced = [str(torch.jit.trace(module, x).inlined_graph).split("return")[0] for module in (theirs, ours)]
    assert "aten::_convolution(" in traced[1]
    assert traced[0].count("aten::") == traced[1].count("aten::")
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.eval()(x), theirs(x))
    assert torch.equal(ours.train()(x.contiguous()), theirs(x.contiguous()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_slow_layers_in_training_do_not_take_torchs_way(precision, monkeypatch):
    monkeypatch.setattr(depthwise, "CPU_HAS_BFLOAT16", True)
    for layer in (((6, 20, 20), 3, 1, 2, 0), ((4, 9, 12), 5, 1, 1, 2), ((4, 9, 13), 3, 2, 1, 1)):
        x, _ = tensors(*layer[:2], precision)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            out = layer_of(DepthwiseConv2d, *layer)(x)
        in_torchs_way = out.grad_fn.name().startswith("ConvolutionBackward")
        assert in_torchs_way == (precision == torch.float32 and layer[2] == 2)  # a stride is slow in bfloat16 only


def test_layers_with_a_bias_keep_torchs_way():
    module = DepthwiseConv2d(4, 4, 3, padding=2, dilation=2, groups=4)
    x = torch.randn(2, 4, 9, 9).to(memory_format=torch.channels_last)
    assert torch.equal(module(x), F.conv2d(x, module.weight, module.bias, 1, 2, 2, 4))
