"""Convolutions for training on a CPU: layers that oneDNN has no fast gradients for are computed another way.

Only the class of such a layer changes. Names, weights, random numbers and exported graphs stay as they are, and each
class keeps nn.Conv2d's own forward for evaluation, traced graphs and GPUs.
"""

from __future__ import annotations

from torch import nn

from segdistill.nets.depthwise import DepthwiseConv2d


def use_fast_convs(net: nn.Module) -> nn.Module:
    """Change the class of each convolution of `net` that has a faster way to train on a CPU, and return `net`."""
    for module in net.modules():
        if type(module) is nn.Conv2d and 1 < module.groups == module.in_channels == module.out_channels:
            module.__class__ = DepthwiseConv2d
    return net
