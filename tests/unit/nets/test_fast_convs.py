"""What `build` changes for training on a CPU: the gradients are those of float64; weights and exported graphs stay."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdistill.export.onnx_file import write_float32
from segdistill.formats.header import Header
from segdistill.nets.depthwise import DepthwiseConv2d
from segdistill.nets.fast_convs import DilatedConv3x3, PaddedConv1x1, StridedConv3x3, use_fast_convs
from segdistill.nets.registry import build, network_module
from segdistill.params.archs import split_network
from support.networks import FIRST_STRIDES, NETWORKS

# (input channels, output channels), (height, width), kernel, dilation; the padding keeps the size, or is the dilation
LAYERS = [
    ((4, 24), (22, 25), 1, 1),
    ((4, 24), (13, 16), 1, 1),
    ((4, 24), (8, 6), 1, 2),
    ((8, 6), (13, 10), 3, 7),
    ((8, 6), (16, 13), 3, 12),
    ((8, 6), (16, 13), 3, 15),  # more than the width, less than the height
    ((8, 6), (16, 13), 3, 16),  # the kernel's centre alone reads the image
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}  # of the norm of what is compared

pytestmark = pytest.mark.usefixtures("one_thread")


def layer_and_input(layer, dtype):
    (channels, out_channels), size, kernel, dilation = layer
    torch.manual_seed(0)
    # A 1x1 convolution reads the same with any dilation: here it says how much is padded.
    conv = nn.Conv2d(channels, out_channels, kernel, 1, dilation, dilation if kernel == 3 else 1, bias=False)
    net = use_fast_convs(nn.Sequential(conv)).to(memory_format=torch.channels_last).train()
    assert type(net[0]) is (DilatedConv3x3 if kernel == 3 else PaddedConv1x1)
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.bfloat16())  # so that rounding the weight is not part of the error
    x = torch.randn(2, channels, *size).to(memory_format=torch.channels_last).to(dtype)
    return net[0], x.requires_grad_()


def output_and_gradients(out, x, weight):
    torch.manual_seed(1)
    direction = torch.randn(out.shape).to(out.dtype).contiguous(memory_format=torch.channels_last)
    return [out.detach(), *torch.autograd.grad(out, (x, weight), direction)]


def is_padded_or_dilated_by_torch(grad_fn):
    """Return whether the graph that ends in `grad_fn` holds a convolution of torch that pads."""
    if grad_fn is None:
        return False
    if any(getattr(grad_fn, "_saved_padding", ())):
        return grad_fn.name().startswith("ConvolutionBackward")
    return any(is_padded_or_dilated_by_torch(before) for before, _ in grad_fn.next_functions)


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_built_network_has_the_weights_of_its_module(arch):
    states = []
    backbone, stride = filter(None, split_network(arch)[1:]), FIRST_STRIDES[arch]
    for make in (partial(network_module(arch).build, 19, stride, *backbone), partial(build, arch, 19, stride)):
        torch.manual_seed(0)
        states.append(make().state_dict() | {"random": torch.get_rng_state()})
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("arch", ["deeplabv3_mobilenet_lite", "lraspp_mobilenet_v3_large"])
def test_the_onnx_file_has_the_same_bytes(arch, tmp_path):
    files = []
    for name, make in (("module", lambda: network_module(arch).build(5, 16)), ("built", lambda: build(arch, 5))):
        torch.manual_seed(0)
        files.append(tmp_path / name)
        write_float32(files[-1], make(), Header.of_net(arch, 5, 16), 18, (64, 64))
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_step_equals_float64(layer, dtype):
    conv, x = layer_and_input(layer, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = conv(x)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    found = output_and_gradients(out, x, conv.weight)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, conv.weight)]
    expected = output_and_gradients(F.conv2d(*exact, None, 1, conv.padding, conv.dilation), *exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert (ours.double() - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (3, 2)])
def test_a_strided_step_equals_float64(size, dtype):
    """Over an image of width 1, torch's own bfloat16 gradient is uninitialised memory."""
    torch.manual_seed(0)
    net = use_fast_convs(nn.Sequential(nn.Conv2d(64, 128, 3, 2, 1, bias=False))).to(memory_format=torch.channels_last)
    assert type(net[0]) is StridedConv3x3
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight.bfloat16())
    x = torch.randn(4, 64, *size).to(memory_format=torch.channels_last).to(dtype).requires_grad_()
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, net[0].weight)]
    expected = output_and_gradients(F.conv2d(*exact, None, 2, 1), *exact)
    for _ in range(5):
        torch.full((128, 64, 3, 3), torch.nan)  # freed at once, so that a gradient may get this memory
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = output_and_gradients(net(x), x, net[0].weight)
        for ours, theirs in zip(found, expected, strict=True):
            assert (ours.double() - theirs).norm() <= TOLERANCE[dtype] * theirs.norm()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_step_gives_the_same_bytes_again(layer):
    conv, x = layer_and_input(layer, torch.float32)
    first, again = (output_and_gradients(conv(x), x, conv.weight) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_evaluation_graphs_and_other_memory_keep_torchs_way(layer):
    conv, x = layer_and_input(layer, torch.float32)
    theirs = F.conv2d(x, conv.weight, None, 1, conv.padding, conv.dilation)
    operations = [line for line in str(torch.jit.trace(conv, x).inlined_graph).splitlines() if "aten::" in line]
    assert len(operations) == 1
    assert "aten::_convolution(" in operations[0]
    with torch.no_grad():
        assert torch.equal(conv(x), theirs)
    assert torch.equal(conv.eval()(x), theirs)
    in_nchw = x.detach().contiguous()
    assert conv.train()(in_nchw).grad_fn.name().startswith("ConvolutionBackward")


def test_a_step_does_not_take_torchs_way():
    for layer in LAYERS:
        conv, x = layer_and_input(layer, torch.float32)
        assert not is_padded_or_dilated_by_torch(conv(x).grad_fn)


def test_a_small_dilation_keeps_torchs_way():
    conv, x = layer_and_input(((8, 6), (16, 13), 3, 6), torch.float32)
    assert is_padded_or_dilated_by_torch(conv(x).grad_fn)


def test_only_the_class_of_layers_changes():
    convs = [
        (nn.Conv2d(3, 8, 3), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, groups=8), DepthwiseConv2d),
        (nn.Conv2d(8, 8, 1), nn.Conv2d),
        (nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d),  # a bias is not zero in the padding
        (nn.Conv2d(8, 8, 1, padding=1, bias=False), PaddedConv1x1),
        (nn.Conv2d(8, 8, 1, 2, padding=1, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False), DilatedConv3x3),
        (nn.Conv2d(8, 8, 3, padding=1, dilation=2, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d),
        (nn.Conv2d(8, 8, 1, padding=1, bias=False, padding_mode="reflect"), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2), nn.Conv2d),
        (nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d),
    ]
    net = nn.Sequential(*(conv for conv, _ in convs))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random_state = torch.get_rng_state()
    assert use_fast_convs(net) is net
    assert [type(conv) for conv in net] == [expected for _, expected in convs]
    assert torch.equal(random_state, torch.get_rng_state())
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
