"""The networks that tests of every network run with."""

from __future__ import annotations

from segdistill.params.archs import arch_facts, arch_names, network_name, split_network, takes_backbone

# A backbone for each network that takes one: one pads as TensorFlow does, the other has squeeze-and-excitation.
BACKBONES = {"deeplabv3plus_timm": "tf_efficientnet_lite0", "lraspp_timm": "mobilenetv3_small_050"}
NETWORKS = [network_name(arch, BACKBONES[arch] if takes_backbone(arch) else None) for arch in arch_names()]
# Each at the first output stride that it can be built at.
FIRST_STRIDES = {network: arch_facts(split_network(network)[0]).output_strides[0] for network in NETWORKS}
NETWORKS_AND_STRIDES = [
    (network, stride) for network in NETWORKS for stride in arch_facts(split_network(network)[0]).output_strides
]
