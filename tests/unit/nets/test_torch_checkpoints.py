"""Weights from elsewhere: what fits is loaded, what does not is named, and nothing in a file runs."""

from __future__ import annotations

import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from segdistill.core.errors import UserError
from segdistill.nets.registry import build, network_module
from segdistill.nets.weights import (
    IMAGENET,
    backbone_state,
    check_values,
    imagenet_backbone_state,
    load_initial,
    load_state,
    read_torch_checkpoint,
)
from segdistill.params.archs import arch_facts, arch_names, takes_backbone
from support.hostile_files import RunsCode
from support.networks import FIRST_STRIDES


class Tiny(nn.Module):
    """A backbone and a classifier with the names that networks have."""

    def __init__(self, classes: int = 19) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1, bias=False)
        self.classifier = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, classes, 1))


@contextmanager
def without_values():
    """Networks built inside have shapes only; random initialisation is skipped, as it would import torch's compiler."""
    with torch.device("meta"), patch.object(torch.Tensor, "normal_", lambda tensor, *_, **__: tensor):
        yield


def assert_same_state(found, wanted) -> None:
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.fixture
def state():
    torch.manual_seed(1)
    return Tiny().state_dict()


WRAPPERS = [None, "model_state", "model_state_dict", "state_dict", "model", "net", "weights", "model_ema", "ema"]


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "model.net."])
def test_load_state_takes_the_forms_of_other_scripts(state, wrapper, prefix):
    torch.manual_seed(2)
    net = Tiny()
    saved = {f"{prefix}{key}": value for key, value in state.items()}
    load_state(net, {wrapper: saved, "epoch": 3} if wrapper else saved, source="x.pth")
    assert_same_state(net.state_dict(), state)


def test_prefix_that_only_some_names_have_is_kept(state):
    state["module.backbone.weight"] = state.pop("backbone.weight")
    with pytest.raises(UserError, match=r"1 missing: backbone\.weight\n  1 unexpected: module\.backbone\.weight"):
        load_state(Tiny(), state, source="x.pth")


def test_plain_weights_are_preferred_to_their_average(state, capsys):
    net, average = Tiny(), {key: value + 1 for key, value in state.items()}
    load_state(net, {"model_ema": average, "model": state}, source="x.pth")
    assert_same_state(net.state_dict(), state)
    assert "x.pth: takes the weights in model, not their average in model_ema" in capsys.readouterr().err


def test_averaged_model_is_loaded_without_its_counter(state):
    averaged = torch.optim.swa_utils.AveragedModel(Tiny())
    averaged.module.load_state_dict(state)
    assert "n_averaged" in averaged.state_dict()
    net = Tiny()
    load_state(net, averaged.state_dict(), source="x.pth")
    assert_same_state(net.state_dict(), state)


def test_batch_norm_without_counted_batches_is_loaded(state):
    net = Tiny()
    load_state(net, {key: value for key, value in state.items() if "num_batches" not in key}, source="x.pth")
    assert net.state_dict()["classifier.0.num_batches_tracked"] == 0
    assert torch.equal(net.backbone.weight, state["backbone.weight"])


def test_auxiliary_head_is_left_out_with_a_line(capsys):
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    with without_values():
        saved = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=19, aux_loss=True)
        net = build("deeplabv3_mobilenet_v3_large", 19)
        load_state(net, saved.state_dict(), source="tv.pth")
    assert "tv.pth: leaves out the auxiliary head (8 weights)" in capsys.readouterr().err


@pytest.mark.parametrize("losses", [("loss.criterion", "sem_loss.criterion"), ("criterion",), ("loss_fn",)])
@pytest.mark.parametrize("prefixes", [("", ""), ("model.", ""), ("module.model.", "module.")])
def test_checkpoint_of_a_script_that_saves_its_losses_too(state, prefixes, losses):
    """As the public training of DDRNet and PIDNet and Lightning modules save it: with the weights of classes."""
    of_net, of_loss = prefixes
    saved = {f"{of_net}{key}": value for key, value in state.items()}
    saved |= {f"{of_loss}{name}.weight": torch.ones(19) for name in losses}
    net = Tiny()
    load_state(net, {"state_dict": saved}, source="public.pt")
    assert_same_state(net.state_dict(), state)


def test_initial_weights_for_other_classes_load_all_but_the_last_layer(state, capsys):
    net = Tiny(5)
    before = net.classifier[1].weight.clone()
    load_initial(net, "tiny", {"model": state}, source="voc.pth")
    assert torch.equal(net.backbone.weight, state["backbone.weight"])
    assert torch.equal(net.classifier[1].weight, before)
    printed = capsys.readouterr().err
    assert "voc.pth: 6 of 8 weights fit the network; these start at random: classifier.1.weight, cl" in printed
    assert "these weights are for 19 classes, the network was built for 5" in printed


def test_initial_weights_that_fit_are_loaded_without_a_line(state, capsys):
    net = Tiny()
    load_initial(net, "tiny", state, source="x.pth")
    assert_same_state(net.state_dict(), state)
    assert capsys.readouterr().err == ""


def test_initial_weights_name_what_the_network_has_no_place_for(state, capsys):
    load_initial(Tiny(), "tiny", state | {"neck.weight": torch.ones(1)}, source="x.pth")
    assert "x.pth: not used, as the network has none of these names: neck.weight" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["deeplabv3_mobilenet_lite", "pidnet_s"])
def test_initial_weights_of_which_none_fits_are_refused(arch):
    with pytest.raises(UserError, match=rf"x\.pth: no weight fits the network {arch}"):
        load_initial(Tiny(), arch, {"features.a": torch.ones(1)}, source="x.pth")


@pytest.mark.parametrize("arch", ["deeplabv3_mobilenet_lite", "deeplabv3plus_resnet50"])
def test_torchvisions_imagenet_file_loads_the_backbone(arch):
    from torchvision.models import get_model

    torch.manual_seed(0)
    classifier = get_model(CLASSIFIERS[network_module(arch).IMAGENET_BACKBONE], weights=None)
    net = build(arch, 19)
    load_initial(net, arch, classifier.state_dict(), source="imagenet.pth")
    expected = backbone_state(arch, classifier.state_dict())
    assert_same_state(net.backbone.state_dict(), expected)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda s: s.pop("backbone.weight"), "1 missing: backbone.weight"),
        (lambda s: s.update({"aux.weight": torch.ones(1)}), "1 unexpected: aux.weight"),
        (
            lambda s: s.update({"backbone.weight": torch.ones(4, 1, 1, 1)}),
            r"1 wrongly shaped: backbone.weight \[4, 1, 1, 1\] instead of \[4, 3, 1, 1\]",
        ),
        (lambda s: s.update({"backbone.weight": 3.0}), "'backbone.weight' holds a float"),
        (lambda s: s.clear(), "holds nothing"),
    ],
)
def test_load_state_names_what_does_not_fit(state, change, cause):
    net = Tiny()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    change(state)
    with pytest.raises(UserError, match=rf"(?s)^teacher\.pth: .*{cause}") as caught:
        load_state(net, state, source="teacher.pth")
    assert "hint" not in str(caught.value)
    assert_same_state(net.state_dict(), before)


@pytest.mark.parametrize("odd", [torch.nan, -torch.inf, 1j])
def test_values_that_are_no_finite_real_numbers_are_named(state, odd):
    check_values(state, "teacher.pth")
    state["backbone.weight"] = state["backbone.weight"] + odd
    with pytest.raises(UserError, match=r"^teacher\.pth: the weights are no finite .*\n  1 spoilt: backbone\.weight$"):
        check_values(state, "teacher.pth")


def test_load_state_names_the_first_few_of_many(state):
    with pytest.raises(UserError, match=r"8 missing: .*, \.\.\.\n  8 unexpected: other\.0, .*, \.\.\.$") as caught:
        load_state(Tiny(), {f"other.{index}": torch.ones(1) for index in range(8)}, source="x")
    assert "other.7" not in str(caught.value)


def test_load_state_hints_at_another_number_of_classes():
    with pytest.raises(UserError, match="hint: these weights are for 21 classes, the network was built for 19"):
        load_state(Tiny(19), Tiny(21).state_dict(), source="voc.pth")


@pytest.mark.parametrize("arch", ["deeplabv3plus_mobilenet", "lraspp_mobilenet_v3_large", "ddrnet23_slim", "pidnet_s"])
def test_class_count_hint_for_real_networks(arch):
    with without_values():
        net, other = (build(arch, classes, FIRST_STRIDES[arch]) for classes in (19, 21))
    with pytest.raises(UserError, match="21 classes, the network was built for 19"):
        load_state(net, other.state_dict(), source="voc.pth")


@pytest.mark.parametrize("suffix", ["pth", "pt"])
@pytest.mark.parametrize("wrapper", [None, "model_state", "state_dict"])
def test_checkpoint_files_are_read(tmp_path, state, suffix, wrapper):
    path = tmp_path / f"net.{suffix}"
    torch.save({wrapper: state} if wrapper else state, path)
    assert_same_state(read_torch_checkpoint(path), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_public_checkpoint_with_training_state_and_numpy_scores(tmp_path, state, zipped):
    """As DeepLabV3Plus-PyTorch saves it: optimizer, scheduler and a numpy score next to the weights."""
    net = Tiny()
    net.load_state_dict(state)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net.classifier(net.backbone(torch.randn(2, 3, 2, 2))).sum().backward()
    optimizer.step()
    path = tmp_path / "best.pth"
    content = {
        "cur_itrs": 30_000,
        "model_state": OrderedDict((f"module.{key}", value) for key, value in net.state_dict().items()),
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": torch.optim.lr_scheduler.StepLR(optimizer, 10).state_dict(),
        "best_score": np.float64(0.721),
        "class_iou": np.ones(19, dtype=np.float32),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    other = Tiny()
    load_state(other, read_torch_checkpoint(path), source=str(path))
    assert_same_state(other.state_dict(), net.state_dict())


def test_numpy_scalars_of_numpy_1_are_read(tmp_path, state):
    """Public checkpoints are older than numpy 2, which moved numpy.core to numpy._core."""
    path = tmp_path / "old.pth"
    torch.save({"model_state": state, "best_score": np.float64(0.7)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    path.write_bytes(content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert_same_state(read_torch_checkpoint(path), state)


@pytest.mark.parametrize("arguments", [Namespace, SimpleNamespace])
def test_checkpoint_with_the_arguments_of_its_script(tmp_path, state, arguments):
    """As torchvision's references/segmentation/train.py saves it."""
    path = tmp_path / "model_9.pth"
    torch.save({"model": state, "epoch": 9, "args": arguments(lr=0.01, output_dir=Path("runs"), amp=False)}, path)
    assert_same_state(read_torch_checkpoint(path), state)


def test_object_that_a_checkpoint_may_not_hold_is_named(tmp_path, state):
    path = tmp_path / "model.pth"
    torch.save({"model": state, "optimizer": torch.optim.SGD(Tiny().parameters())}, path)
    with pytest.raises(UserError, match=r"model\.pth: .* \(it holds a Python object of torch\.optim\.sgd\.SGD\)$"):
        read_torch_checkpoint(path)


def test_torchscript_archive_is_refused_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:  # what torch takes for one, as torch.jit is slow to import
        for name in ("constants.pkl", "data.pkl", "version"):
            archive.writestr(f"net/{name}", b"3\n")
    with pytest.raises(UserError, match=r"net\.pt: .*TorchScript"):
        read_torch_checkpoint(path)
    assert not recwarn.list


@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle"])
def test_code_in_a_file_does_not_run(tmp_path, state, how):
    target, path = tmp_path / "created", tmp_path / "hostile.pth"
    content = {"model_state": state, "extra": RunsCode(target)}
    if how == "bare pickle":
        path.write_bytes(pickle.dumps(RunsCode(target), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(UserError, match=r"hostile\.pth: not a checkpoint that can be read safely"):
        read_torch_checkpoint(path)
    assert not target.exists()

    # The same bytes do create it when unpickled without care: the test is able to fail.
    if how == "bare pickle":
        pickle.loads(path.read_bytes())
        assert target.exists()


def test_numpy_stand_ins_do_not_become_weights(tmp_path, state):
    path = tmp_path / "arrays.pth"
    torch.save({key: value.numpy() for key, value in state.items()}, path)
    with pytest.raises(UserError, match=r"arrays\.pth: not a state dict: 'backbone\.weight'"):
        read_torch_checkpoint(path)


@pytest.mark.parametrize("odd", [lambda weight: weight.to_sparse(), lambda weight: weight.to("meta")])
def test_weights_without_plain_values_are_named(tmp_path, state, odd):
    path = tmp_path / "odd.pth"
    torch.save(state | {"backbone.weight": odd(state["backbone.weight"])}, path)
    with pytest.raises(UserError, match=r"odd\.pth: the weights cannot be copied into the network .*backbone\.weight"):
        load_state(Tiny(), read_torch_checkpoint(path), source=str(path))


def truncated(path: Path) -> None:
    torch.save({"model_state": Tiny().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:-600])


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("not weights\n"), id="text"),
        pytest.param(lambda path: path.write_bytes(bytes(range(256)) * 8), id="bytes"),
        pytest.param(truncated, id="truncated"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(lambda path: None, id="absent"),
        pytest.param(lambda path: torch.save({}, path), id="no weights"),
        pytest.param(lambda path: torch.save({"model_state": {}}, path), id="no weights inside"),
        pytest.param(lambda path: torch.save(torch.ones(3), path), id="a tensor"),
        pytest.param(lambda path: torch.save({"epoch": 3}, path), id="a number"),
        pytest.param(lambda path: torch.save(Tiny(), path), id="a pickled module"),
    ],
)
def test_unreadable_checkpoint_is_named(tmp_path, write):
    path = tmp_path / "broken.pth"
    write(path)
    with pytest.raises(UserError, match=r"broken\.pth: "):
        read_torch_checkpoint(path)


# Those whose weights are torchvision's.
WITH_IMAGENET = [arch for arch in arch_names() if arch_facts(arch).has_imagenet_weights and not takes_backbone(arch)]
CLASSIFIERS = {
    "mobilenet": "mobilenet_v2",
    "mobilenet_tv": "mobilenet_v2",
    "mobilenet_v3_large": "mobilenet_v3_large",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
}


@pytest.mark.parametrize("arch", WITH_IMAGENET)
def test_imagenet_weights_fit_the_backbone(arch):
    """Every weight of the backbone has its counterpart in torchvision's classifier, in the same order."""
    from torchvision.models import get_model

    with without_values():
        backbone = build(arch, 19).backbone
        classifier = get_model(CLASSIFIERS[network_module(arch).IMAGENET_BACKBONE], weights=None)
    found = backbone_state(arch, classifier.state_dict())
    assert [(key, value.shape) for key, value in found.items()] == [
        (key, value.shape) for key, value in backbone.state_dict().items()
    ]


def test_imagenet_weights_of_an_unknown_network():
    with pytest.raises(UserError, match="'unet'"):
        imagenet_backbone_state("unet")


def test_imagenet_weights_exist_for_every_backbone():
    from torchvision.models import get_weight

    for arch in WITH_IMAGENET:
        assert get_weight(".".join(IMAGENET[network_module(arch).IMAGENET_BACKBONE])).url.startswith(
            "https://download.pytorch.org/"
        )
