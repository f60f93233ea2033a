"""Weights files: they rebuild their network, and any other file is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segdistill.core.errors import UserError
from segdistill.formats.classes import ClassTable
from segdistill.formats.header import MEAN, STD, Header, header_if_any, read_header
from segdistill.nets.registry import build
from segdistill.nets.weights import load_net, read_state, save_net

ARCH, CLASSES = "deeplabv3_mobilenet_lite", 5
TABLE = ClassTable(tuple("abcde"), (1, 2, 3, 4, 5), tuple((0, 0, value) for value in range(5)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build(ARCH, CLASSES)


@pytest.fixture(scope="module")
def header():
    return Header.of_net(ARCH, TABLE, 16).with_history(params={"lr": 0.1}, seed=3, step=20, git_revision="abc")


@pytest.fixture(scope="module")
def saved(net, header, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "net.safetensors"
    save_net(path, net, header)
    return path


def header_of(path) -> dict:
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["segdistill"])


def rewritten(saved, path, change):
    """A copy of `saved` whose tensors went through `change`."""
    state = load_file(saved)
    change(state)
    with safe_open(saved, "pt") as opened:
        save_file(state, path, metadata=opened.metadata())
    return path


def test_weights_and_header_are_read_again(net, header, saved):
    found, found_header = load_net(saved)
    assert found_header == read_header(saved) == header_if_any(saved) == header
    expected = net.state_dict()
    assert list(found.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())


def test_loaded_network_is_in_eval_mode(saved):
    assert not load_net(saved)[0].training


def test_header_describes_the_network(saved):
    facts = header_of(saved)
    assert (facts["arch"], facts["classes"], facts["output_stride"]) == (ARCH, CLASSES, 16)
    assert (facts["class_names"], facts["label_ids"], facts["colors"][4]) == (list("abcde"), [1, 2, 3, 4, 5], [0, 0, 4])
    assert (facts["normalisation"]["mean"], facts["normalisation"]["std"]) == (list(MEAN), list(STD))
    assert (facts["normalisation"]["order"], facts["normalisation"]["range"]) == ("RGB", "0..1")
    assert (facts["seed"], facts["step"], facts["teacher_sha256"]) == (3, 20, None)


def test_saving_twice_gives_the_same_bytes(net, header, saved, tmp_path):
    save_net(tmp_path / "again.safetensors", net, header)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_memory_layout_does_not_change_the_file(net, header, saved, tmp_path):
    placed = build(ARCH, CLASSES)
    placed.load_state_dict(net.state_dict())
    save_net(tmp_path / "placed.safetensors", placed.to(memory_format=torch.channels_last), header)
    assert (tmp_path / "placed.safetensors").read_bytes() == saved.read_bytes()


def test_others_may_read_the_file(saved):
    assert saved.stat().st_mode & 0o777 == 0o644


def broken_files(saved, folder):
    """Write files that are no weights into `folder`, by kind."""
    whole = saved.read_bytes()
    contents = {"truncated": whole[:-1000], "truncated header": whole[:100], "text": b"weights\n" * 99, "empty": b""}
    for kind, content in contents.items():
        (folder / kind).write_bytes(content)
    (folder / "folder").mkdir()


@pytest.mark.parametrize("kind", ["truncated", "truncated header", "text", "empty", "folder", "missing"])
@pytest.mark.parametrize("read", [load_net, read_header, read_state])
def test_file_that_is_no_weights_file_is_refused_by_name(saved, tmp_path, kind, read):
    broken_files(saved, tmp_path)
    with pytest.raises(UserError) as error:
        read(tmp_path / kind)
    assert str(tmp_path / kind) in str(error.value)


def test_foreign_safetensors_are_refused_by_name(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"foreign\.safetensors: its header does not say which network"):
        load_net(tmp_path / "foreign.safetensors")


def test_foreign_safetensors_are_read_as_a_state_dict(tmp_path):
    save_file({"weight": torch.arange(2.0)}, tmp_path / "foreign.safetensors")
    assert read_state(tmp_path / "foreign.safetensors")["weight"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.classifier.3.weight"), "missing: classifier.classifier.3.weight"),
        (lambda state: state.update({"aux.weight": torch.zeros(1)}), "unexpected: aux.weight"),
        (lambda state: state.update({"classifier.classifier.3.weight": torch.zeros(3)}), "wrongly shaped"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(saved, tmp_path, change, message):
    path = rewritten(saved, tmp_path / "changed.safetensors", change)
    with pytest.raises(UserError) as error:
        load_net(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arch": "resnet"}, "no network is named 'resnet'; allowed: .*lraspp"),
        ({"arch": ["resnet"]}, "list"),
        ({"classes": -1}, "-1 classes; allowed: 1 to 255"),
        ({"classes": 10**9}, "1000000000 classes; allowed: 1 to 255"),
        ({"classes": "5"}, "'5' classes"),
        ({"class_names": None}, "class_names: found None; allowed are texts"),
        ({"class_names": ["a"]}, "1 class_names of . classes"),
        ({"label_ids": [1]}, r"label_ids: found \[1\]"),
        ({"params": [1]}, r"params: found \[1\]; allowed is a value of type dict"),
        ({"step": "20"}, "step: found '20'; allowed is a value of type int"),
        ({"teacher_sha256": 5}, "teacher_sha256: found 5; allowed is a value of type str"),
        ({"normalisation": {"mean": [0.5] * 3}}, "normalisation .*; this version feeds"),
        ({"output_stride": 7}, "cannot have output stride 7; allowed: 8 or 16"),
        ({"output_stride": 16.0}, "cannot have output stride 16.0"),
    ],
)
def test_header_that_describes_no_network_is_refused_by_name(saved, tmp_path, changed, message):
    text = json.dumps(header_of(saved) | changed)
    save_file(load_file(saved), tmp_path / "net.safetensors", metadata={"segdistill": text})
    for read in (load_net, header_if_any):
        with pytest.raises(UserError, match=rf"net\.safetensors: its header does not describe a network: .*{message}"):
            read(tmp_path / "net.safetensors")


@pytest.mark.parametrize("key", ["arch", "classes", "output_stride"])
def test_header_of_another_network_is_refused(saved, header, key):
    other = header.with_history(**{key: {"arch": "deeplabv3_mobilenet", "classes": 4, "output_stride": 8}[key]})
    with pytest.raises(UserError, match=rf"net\.safetensors: {key} is .* there, .* is needed"):
        load_net(saved, expected=other)


def test_files_of_others_have_no_header(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "foreign.pth")
    assert header_if_any(tmp_path / "foreign.safetensors") is header_if_any(tmp_path / "foreign.pth") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "does not say arch"),
        ("3", "int"),
        ("{}", "does not say arch, classes, output_stride"),
    ],
)
def test_header_without_facts_is_refused_by_name(tmp_path, text, message):
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors", metadata={"segdistill": text})
    with pytest.raises(UserError, match=rf"net\.safetensors: its header does not describe a network: .*{message}"):
        read_header(tmp_path / "net.safetensors")
