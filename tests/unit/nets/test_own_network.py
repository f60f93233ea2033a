"""A network of the user's own: a file in the folder of networks, used by its name; a broken one is named."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.nets.registry import build, native_stride
from segdistill.nets.weights import imagenet_backbone_state
from segdistill.params import archs
from segdistill.params.archs import arch_facts, arch_names
from segdistill.params.read import load_params
from segdistill.training.job import initial_net
from support.tiny_training import settings_of

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[3]
(EXAMPLE,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs/extend.md").read_text(encoding="utf-8"), re.DOTALL)
GOOD = (
    "from torch import nn\nNATIVE_STRIDE = 4\ndef build(classes, output_stride):\n    return nn.Conv2d(3, classes, 1)\n"
)


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Have a second folder of networks, and write files into it."""
    import segdistill.networks

    built_in = {path.name: path.read_text(encoding="utf-8") for path in archs.NETWORKS.glob("*.py")}
    for name, text in built_in.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(archs, "NETWORKS", tmp_path)
    monkeypatch.setattr(segdistill.networks, "__path__", [str(tmp_path)])
    loaded = set(sys.modules)

    def add(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        importlib.invalidate_caches()

    yield add
    for name in set(sys.modules) - loaded:
        if name.startswith("segdistill.networks."):
            del sys.modules[name]


def test_the_example_of_the_docs_is_a_network(add, tmp_path):
    add("mine", EXAMPLE)
    facts = arch_facts("mine")
    assert (facts.description, facts.output_strides) == ("Three convolutions and a classifier", (8,))
    net = build("mine", 7, 8).train()
    assert native_stride("mine", 8) == 8
    logits = net(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 7, 8, 12)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert any(name.startswith("backbone.") for name, _ in net.named_parameters())
    profile = (ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8")
    params = tmp_path / "params.yaml"
    params.write_text(profile.replace("arch: deeplabv3plus_mobilenet", "arch: mine", 1), encoding="utf-8")
    assert load_params(params).teacher.network == "mine"


BROKEN = {
    "no build": (
        "NATIVE_STRIDE = 4\n",
        r"mine\.py: a network has a function build\(classes, output_stride\); found no",
    ),
    "other parameters": (
        GOOD.replace("output_stride)", "width)"),
        r"mine\.py: a network has .*; found build\(classes, width\)",
    ),
    "no native stride": (GOOD.replace("NATIVE_STRIDE", "STRIDE"), r"mine\.py: NATIVE_STRIDE: found 'nothing'"),
    "a stride of 3": (GOOD.replace("= 4", "= 3"), r"mine\.py: NATIVE_STRIDE: found 3; allowed is a written multiple"),
    "a computed stride": (GOOD.replace("= 4", "= 2 ** 2"), r"mine\.py: NATIVE_STRIDE: found 'nothing'"),
    "output stride 32": (GOOD + "OUTPUT_STRIDES = (32,)\n", r"mine\.py: OUTPUT_STRIDES: found \(32,\)"),
    "no Python": ("def build(:\n", r"mine\.py: is not Python \(invalid syntax, line 1\)"),
    "zero bytes": ("\0", r"mine\.py: is not Python"),
    "raises": (GOOD + "1 / 0\n", r"mine\.py: cannot be imported \(line 5: ZeroDivisionError"),
    "imports nothing that is there": ("import no_such_module\n" + GOOD, "mine.py: cannot be imported .*no_such_module"),
    "builds no network": (GOOD.replace("nn.Conv2d(3, classes, 1)", "3"), r"mine\.py: build returned a int"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_named(add, name):
    text, message = BROKEN[name]
    add("mine", text)
    with pytest.raises(UserError, match=message):
        build("mine", 5)


RETURNED = {
    "too many classes": ("nn.Conv2d(3, classes + 2, 1)", r"torch\.float32 \[1, 7, 64, 64\]"),
    "no classes": ("nn.Flatten(0, 1)", r"torch\.float32 \[3, 64, 64\]"),
    "a dict": ("nn.ModuleDict()", "a dict"),
    "logits and more, though it does not train": ("nn.ReLU()", "a tuple"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_is_no_logits_is_refused_before_a_training(add, name, monkeypatch):
    built, found = RETURNED[name]
    add("mine", GOOD.replace("nn.Conv2d(3, classes, 1)", built))
    monkeypatch.setattr(torch.nn.ModuleDict, "forward", lambda self, images: {"out": images}, raising=False)
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, images: (images, images))
    with pytest.raises(UserError, match=rf"mine\.py: .* returns {found} for .*; needed are logits \[1, 5, height,"):
        initial_net("mine", 5, settings_of(), 0, "runs.one.init")


DRAWN = (
    "import torch\nfrom torch import nn\nNATIVE_STRIDE = 4\nclass Mine(nn.Module):\n    def __init__(self, classes):\n"
    "        super().__init__()\n        self.conv = nn.Conv2d(3, classes, 1)\n        {}\n"
    "    def forward(self, x):\n        return self.conv(x * self.scale)\n"
    "def build(classes, output_stride):\n    return Mine(classes)\n"
)
OUTSIDE = {
    "a drawn tensor": "self.scale = torch.rand(3, 1, 1)",
    "a drawn buffer that is not saved": "self.register_buffer('scale', torch.rand(3, 1, 1), persistent=False)",
    "one drawn in place": "self.register_buffer('scale', torch.ones(3, 1, 1).uniform_(), persistent=False)",
    "layers without a shape": "self.scale, self.lazy = 1, nn.LazyConv2d(3, 1)",
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_network_that_its_weights_do_not_make_again_is_refused_before_a_training(add, name):
    add("mine", DRAWN.format(OUTSIDE[name]))
    with pytest.raises(
        UserError, match=r"mine\.py: .*; needed is one whose parameters and buffers hold all that it draws"
    ):
        initial_net("mine", 5, settings_of(), 0, "runs.one.init")


def test_drawn_buffers_that_are_saved_are_allowed(add):
    add("mine", DRAWN.format("self.register_buffer('scale', torch.rand(3, 1, 1))"))
    assert initial_net("mine", 5, settings_of(), 0, "runs.one.init").training


def test_features_behind_the_logits_are_refused(add):
    method = (
        "    def features_and_logits(self, x):\n        return self.classifier(self.backbone(x)), self.backbone(x)\n"
    )
    add("mine", EXAMPLE.replace("def build(", f"{method}\n\ndef build("))
    with pytest.raises(UserError, match=r"mine\.py: needed of features_and_logits are the features, then the logits"):
        initial_net("mine", 5, settings_of(output_stride=8), 0, "runs.one.init")


def test_broken_file_is_named_with_its_place_in_params(add, tmp_path):
    add("mine", "")
    profile = (ROOT / "profiles/tiny.yaml").read_text(encoding="utf-8")
    changed = profile.replace("vanilla:  {student: deeplabv3plus_mobilenet", "vanilla:  {student: mine", 1)
    assert changed != profile
    (tmp_path / "params.yaml").write_text(changed, encoding="utf-8")
    with pytest.raises(UserError, match=r"runs\.vanilla\.student: .*mine\.py: a network has a function build"):
        load_params(tmp_path / "params.yaml")


def test_a_network_without_imagenet_weights_is_refused_them(add):
    add("mine", GOOD)
    with pytest.raises(UserError, match="found imagenet; mine has no ImageNet weights"):
        imagenet_backbone_state("mine")


def test_every_built_in_file_describes_a_network():
    described = [arch_facts(name).description for name in arch_names()]
    assert len(described) >= 16
    assert len(set(described)) == len(described)
