"""Weights that never travel alone: the file rebuilds its net, and anything else is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segdistill.core.errors import UserError
from segdistill.formats.header import MEAN, STD, Header
from segdistill.nets.registry import build
from segdistill.nets.weights import load_net, read_state, save_net

ARCH, CLASSES = "deeplabv3_mobilenet_lite", 5


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build(ARCH, CLASSES)


@pytest.fixture(scope="module")
def facts():
    return Header.of_net(ARCH, CLASSES, 16) | {"seed": 3, "step": 20, "teacher_sha256": None}


@pytest.fixture(scope="module")
def saved(net, facts, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    save_net(path, net, facts)
    return path


def rewritten(saved, path, change):
    """A copy of `saved` whose tensors went through `change`."""
    state = load_file(saved)
    change(state)
    with safe_open(saved, "pt") as opened:
        save_file(state, path, metadata=opened.metadata())
    return path


def test_weights_and_facts_come_back(net, facts, saved):
    found, found_facts = load_net(saved)
    assert found_facts == facts
    expected = net.state_dict()
    assert list(found.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_a_loaded_net_is_in_eval_mode(saved):
    assert not load_net(saved)[0].training


def test_the_header_says_what_the_net_is(saved):
    with safe_open(saved, "pt") as opened:
        header = json.loads(opened.metadata()["segdistill"])
    assert (header["arch"], header["classes"], header["output_stride"]) == (ARCH, CLASSES, 16)
    assert (header["normalisation"]["mean"], header["normalisation"]["std"]) == (list(MEAN), list(STD))
    assert (header["normalisation"]["order"], header["normalisation"]["range"]) == ("RGB", "0..1")


def test_saving_twice_gives_the_same_bytes(net, facts, saved, tmp_path):
    save_net(tmp_path / "again.safetensors", net, dict(reversed(facts.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_memory_layout_is_no_part_of_the_file(net, facts, saved, tmp_path):
    placed = build(ARCH, CLASSES)
    placed.load_state_dict(net.state_dict())
    save_net(tmp_path / "placed.safetensors", placed.to(memory_format=torch.channels_last), facts)
    assert (tmp_path / "placed.safetensors").read_bytes() == saved.read_bytes()


def test_others_may_read_the_file(saved):
    assert saved.stat().st_mode & 0o777 == 0o644


def broken_files(saved, folder):
    """By kind: a file that holds no net of ours, and what the message tells of it."""
    whole = saved.read_bytes()
    contents = {"truncated": whole[:-1000], "truncated header": whole[:100], "text": b"weights\n" * 99, "empty": b""}
    for kind, content in contents.items():
        (folder / kind).write_bytes(content)
    (folder / "folder").mkdir()


@pytest.mark.parametrize("kind", ["truncated", "truncated header", "text", "empty", "folder", "missing"])
@pytest.mark.parametrize("read", [load_net, read_facts, read_state])
def test_what_is_no_weights_file_is_refused_by_name(saved, tmp_path, kind, read):
    broken_files(saved, tmp_path)
    with pytest.raises(UserError) as error:
        read(tmp_path / kind)
    assert str(tmp_path / kind) in str(error.value)


def test_foreign_safetensors_are_refused_by_name(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"foreign\.safetensors: its header does not say which network"):
        load_net(tmp_path / "foreign.safetensors")


def test_foreign_safetensors_have_a_state_all_the_same(tmp_path):
    save_file({"weight": torch.arange(2.0)}, tmp_path / "foreign.safetensors")
    assert read_state(tmp_path / "foreign.safetensors")["weight"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop(next(iter(state))), "missing"),
        (lambda state: state.update({"aux.weight": torch.zeros(1)}), "unexpected: aux.weight"),
        (lambda state: state.update({next(iter(state)): torch.zeros(3)}), "wrongly shaped"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, tmp_path, change, told):
    path = rewritten(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(UserError) as error:
        load_net(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"arch": "resnet"}, "no network is named 'resnet'; allowed: .*lraspp"),
        ({"arch": ["resnet"]}, "list"),
        ({"classes": -1}, "-1 classes; allowed: 1 to 255"),
        ({"classes": 10**9}, "1000000000 classes; allowed: 1 to 255"),
        ({"classes": "5"}, "'5' classes"),
        ({"class_names": None}, "class_names: found None; allowed are texts"),
        ({"class_names": ["a"]}, "1 class_names of . classes"),
        ({"output_stride": 7}, "cannot have output stride 7; allowed: 8 or 16"),
        ({"output_stride": 16.0}, "cannot have output stride 16.0"),
    ],
)
def test_facts_that_describe_no_net_are_refused_by_name(net, facts, tmp_path, changed, told):
    save_net(tmp_path / "net.safetensors", net, facts | changed)
    with pytest.raises(UserError, match=rf"net\.safetensors: its header does not describe a network: .*{told}"):
        load_net(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting"),
        ("[]", "does not say arch"),
        ("3", "int"),
        ("{}", "does not say arch, classes, output_stride"),
    ],
)
def test_a_header_without_facts_is_refused_by_name(tmp_path, text, told):
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors", metadata={"segdistill": text})
    with pytest.raises(UserError, match=rf"net\.safetensors: its header does not describe a network: .*{told}"):
        read_facts(tmp_path / "net.safetensors")
