"""What `build` changes for training on a CPU changes neither weights nor exported graphs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdistill.export.onnx_file import write_float32
from segdistill.formats.header import Header
from segdistill.nets.depthwise import DepthwiseConv2d
from segdistill.nets.fast_convs import use_fast_convs
from segdistill.nets.registry import build, network_module
from segdistill.params.archs import ARCHS

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("arch", ARCHS)
def test_a_built_network_has_the_weights_of_its_module(arch):
    states = []
    for make in (lambda: network_module(arch).build(19, 16), lambda: build(arch, 19)):
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


def test_only_the_class_of_layers_changes():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, groups=4)
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random_state = torch.get_rng_state()
    assert use_fast_convs(net) is net
    assert [type(module) for module in net] == [nn.Conv2d, DepthwiseConv2d, nn.Conv2d, nn.Conv2d]
    assert torch.equal(random_state, torch.get_rng_state())
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())
