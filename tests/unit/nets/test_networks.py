"""Networks: parity with outside references, shapes, gradients, sizes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from segdistill.core.errors import UserError
from segdistill.nets.mobilenet import PaddedMobileNetV2, TorchvisionMobileNetV2
from segdistill.nets.registry import build, build_uninitialized, native_stride, network_module
from segdistill.nets.resize import upsample
from segdistill.nets.resnet import ResNetBackbone
from support.networks import FIRST_STRIDES, NETWORKS_AND_STRIDES
from support.scripts_as_modules import load_script

pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = Path(__file__).parents[3].parent / "shared"
REFERENCES = SHARED / "reference"
REFERENCED_ARCHS = (
    "deeplabv3_mobilenet",
    "deeplabv3_mobilenet_lite",
    "deeplabv3_resnet50",
    "deeplabv3plus_mobilenet",
    "deeplabv3plus_resnet50",
    "deeplabv3plus_resnet101",
)
REALTIME_ARCHS = ("ddrnet23_slim", "pidnet_s")
TORCHVISION_ARCHS = ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
BACKBONES = {
    "mobilenet": PaddedMobileNetV2,
    "mobilenet_tv": TorchvisionMobileNetV2,
    "resnet50": partial(ResNetBackbone, "resnet50"),
    "resnet101": partial(ResNetBackbone, "resnet101"),
}


def empty(arch: str, classes: int, output_stride: int = 16) -> nn.Module:
    """A network whose tensors have shapes but no values: built at once, which is enough for shapes."""
    # Drawing random numbers for tensors without values imports torch's compiler, for seconds.
    with torch.device("meta"), patch.object(torch.Tensor, "normal_", lambda tensor, *_, **__: tensor):
        return build(arch, classes, output_stride)


def shuffle_batch_norms(net: nn.Module) -> nn.Module:
    """Give batch norms values that normalise something, so that mistakes at borders show; eval mode."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                nn.init.normal_(tensor, std=0.1)
    return net.eval()


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted))


@pytest.fixture(scope="module")
def reference_weights():
    source = SHARED / "tools" / "reference_weights.py"
    if not source.is_file():
        pytest.skip(f"no reference weights at {source}")
    return load_script(source)


def reference_of(path):
    """The arrays of a reference, the names and shapes of its weights, and the sizes of its images."""
    if not path.is_file():
        pytest.skip(f"no reference at {path}")
    reference = np.load(path)
    sizes = [name.removeprefix("logits_") for name in reference.files if name.startswith("logits_")]
    assert len(sizes) == 2
    return reference, json.loads(str(reference["keys"])), [tuple(map(int, size.split("x"))) for size in sizes]


@pytest.mark.parametrize("arch", [*REFERENCED_ARCHS, *REALTIME_ARCHS])
def test_public_implementation_gives_the_same_logits(arch, reference_weights):
    is_realtime = arch in REALTIME_ARCHS
    file = f"realtime/{arch}.npz" if is_realtime else f"deeplab/{arch}_os16.npz"
    reference, keys, sizes = reference_of(REFERENCES / file)
    height, width = sizes[0]
    net = empty(arch, reference[f"logits_{height}x{width}"].shape[1], 8 if is_realtime else 16)

    assert [(key, list(value.shape)) for key, value in net.state_dict().items()] == list(keys.items())

    state = {key: torch.from_numpy(reference_weights.tensor(key, tuple(shape))) for key, shape in keys.items()}
    net.load_state_dict(state, assign=True)
    net.eval()
    for height, width in sizes:
        images = torch.from_numpy(reference_weights.image((1, 3, height, width)))
        with torch.no_grad():
            logits = net(images)
        if not is_realtime:  # the reference holds every eighth pixel
            logits = upsample(logits, (height, width))[:, :, ::8, ::8]
        assert relative_error(logits, torch.from_numpy(reference[f"logits_{height}x{width}"])) < 1e-4


def halved(size: int, times: int) -> int:
    """The size after convolutions of stride 2 that pad both sides."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


@pytest.mark.parametrize(("arch", "output_stride"), NETWORKS_AND_STRIDES)
def test_logits_have_the_native_stride(arch, output_stride):
    halvings = {4: 2, 8: 3, 16: 4}[native_stride(arch, output_stride)]
    net = empty(arch, classes=7, output_stride=output_stride).eval()
    size_px = (67, 98)  # odd and even

    logits = net(torch.empty(2, 3, *size_px, device="meta"))

    if getattr(network_module(arch), "IMAGENET_BACKBONE", None) == "mobilenet":  # its first convolution does not pad
        expected = [halved((size - 1) // 2, halvings - 1) for size in size_px]
    else:
        expected = [halved(size, halvings) for size in size_px]
    assert tuple(logits.shape) == (2, 7, *expected)
    assert tuple(upsample(logits, size_px).shape) == (2, 7, *size_px)


@pytest.mark.parametrize("backbone", ["resnet50", "mobilenet", "mobilenet_tv"])
def test_dilated_backbone_computes_the_strided_one_between_its_pixels(backbone):
    """Dilation in place of a stride: every other output is that of the network with the stride."""
    torch.manual_seed(0)
    dilated = shuffle_batch_norms(BACKBONES[backbone](8))
    strided = BACKBONES[backbone](16).eval()
    strided.load_state_dict(dilated.state_dict())
    images = torch.randn(1, 3, 70, 99)
    with torch.no_grad():
        low, out = dilated(images)
        low_strided, out_strided = strided(images)

    torch.testing.assert_close(low, low_strided)
    assert relative_error(out[:, :, ::2, ::2], out_strided) < 1e-5


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_backbone_computes_torchvisions_classifier_between_its_pixels(name):
    from torchvision.models import get_model

    torch.manual_seed(0)
    whole = shuffle_batch_norms(get_model(name, weights=None))
    backbone = BACKBONES[{"mobilenet_v2": "mobilenet_tv"}.get(name, name)](16).eval()
    kept = backbone.state_dict()
    backbone.load_state_dict({key: value for key, value in whole.state_dict().items() if key in kept})
    images = torch.randn(1, 3, 70, 99)
    with torch.no_grad():
        if name == "mobilenet_v2":
            expected = whole.features[:-1](images)
        else:
            expected = nn.Sequential(*list(whole.children())[:-2])(images)
        low, out = backbone(images)

    assert low.shape[-2:] == (18, 25)
    assert relative_error(out[:, :, ::2, ::2], expected) < 1e-5


@pytest.mark.parametrize(("name", "output_stride"), [("resnet50", 8), ("resnet50", 16), ("resnet101", 8)])
def test_resnet_equals_torchvisions(name, output_stride):
    from torchvision.models import get_model

    torch.manual_seed(0)
    dilated = [False, output_stride == 8, True]
    theirs = shuffle_batch_norms(get_model(name, weights=None, replace_stride_with_dilation=dilated))
    ours = BACKBONES[name](output_stride).eval()
    of_theirs = dict(theirs.named_parameters())
    for weight_name, weight in ours.named_parameters():
        if weight.numel() > 10_000:  # drawn from the same distribution
            assert weight.std().item() == pytest.approx(of_theirs[weight_name].std().item(), rel=0.05)
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(1, 3, 65, 98)
    with torch.no_grad():
        found, wanted = ours(images)[1], nn.Sequential(*list(theirs.children())[:-2])(images)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("arch", TORCHVISION_ARCHS)
def test_wrapped_network_equals_torchvisions(arch):
    from torchvision.models import get_model

    torch.manual_seed(0)
    theirs = shuffle_batch_norms(get_model(arch, weights=None, weights_backbone=None, num_classes=5))
    ours = build(arch, classes=5).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 65, 98)
    with torch.no_grad():
        torch.testing.assert_close(upsample(ours(images), (65, 98)), theirs(images)["out"], rtol=0, atol=0)


@pytest.mark.parametrize(("arch", "output_stride"), FIRST_STRIDES.items())
def test_uninitialized_network_draws_nothing_and_loads_all_weights(arch, output_stride):
    torch.manual_seed(0)
    drawn = build(arch, 5, output_stride)
    before = torch.get_rng_state()
    loaded = build_uninitialized(arch, 5, output_stride)
    assert torch.equal(torch.get_rng_state(), before)
    loaded.load_state_dict(drawn.state_dict())
    expected = drawn.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert dict(loaded.named_buffers()).keys() <= expected.keys()  # any other would stay uninitialised


@pytest.mark.parametrize(("arch", "output_stride"), FIRST_STRIDES.items())
def test_every_parameter_gets_a_gradient(arch, output_stride):
    torch.manual_seed(0)
    net = build(arch, 5, output_stride).train()
    # At stride 64, batch norm behind the pools takes out the biases before them unless the pools' borders differ.
    outputs = net(torch.randn(2, 3, *((64, 256) if arch in REALTIME_ARCHS else (32, 32))))
    sum(each.square().mean() for each in (outputs if isinstance(outputs, tuple) else [outputs])).backward()

    without = [
        name
        for name, parameter in net.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_lite_head_has_its_published_size():
    assert num_parameters(empty("deeplabv3_mobilenet_lite", classes=5).classifier) == 3_294_469


def test_separable_head_size():
    """Each 3x3 convolution of `i` to `o` channels takes 9 i + i o weights instead of 9 i o."""
    plain = empty("deeplabv3plus_mobilenet", classes=19)
    separable = empty("deeplabv3plus_mobilenet_separable", classes=19)
    saved = sum(9 * i * o - (9 * i + i * o) for i, o in [(320, 256)] * 3 + [(304, 256)])

    assert num_parameters(plain.classifier) - num_parameters(separable.classifier) == saved
    assert list(plain.backbone.state_dict()) == list(separable.backbone.state_dict())


def test_separable_head_has_the_public_names():
    keys = empty("deeplabv3plus_mobilenet_separable", classes=19).state_dict()
    convolutions = [key for key in keys if ".body." in key]
    assert convolutions == [
        f"classifier.{place}.0.body.{part}.weight"
        for place in ("aspp.convs.1", "aspp.convs.2", "aspp.convs.3", "classifier")
        for part in (0, 1)
    ]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_aspp_dilations_follow_the_output_stride(output_stride):
    net = empty("deeplabv3plus_mobilenet_separable", classes=19, output_stride=output_stride)
    branches = [net.classifier.aspp.convs[index][0].body[0] for index in (1, 2, 3)]
    factor = 16 // output_stride
    assert [branch.dilation[0] for branch in branches] == [6 * factor, 12 * factor, 18 * factor]


def test_unknown_network_is_refused_with_what_is_allowed():
    with pytest.raises(UserError, match=r"'unet'; allowed: .*deeplabv3plus_mobilenet,"):
        build("unet", classes=19)
    with pytest.raises(UserError, match="'unet'"):
        native_stride("unet")


@pytest.mark.parametrize(
    ("arch", "output_stride", "allowed"),
    [
        ("deeplabv3plus_mobilenet", 32, "8 or 16"),
        *((arch, 8, "16$") for arch in TORCHVISION_ARCHS),
        ("pidnet_s", 16, "8$"),
    ],
)
def test_output_stride_that_cannot_be_built_is_refused(arch, output_stride, allowed):
    with pytest.raises(UserError, match=f"{arch}.*output stride {output_stride}; allowed: {allowed}"):
        build(arch, classes=19, output_stride=output_stride)
    with pytest.raises(UserError, match=f"allowed: {allowed}"):
        native_stride(arch, output_stride)
