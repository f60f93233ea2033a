"""What `compute.devices` may be, and that one device is no rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from segdistill.core.errors import UserError
from segdistill.parallel import ranks
from segdistill.parallel.launch import on_devices
from segdistill.params.model import ComputeParams
from segdistill.params.read import load_params

PROFILE = Path(__file__).parents[3] / "profiles" / "tiny.yaml"


def compute_of(devices: int) -> ComputeParams:
    return ComputeParams(device="auto", precision="float32", threads=1, devices=devices)


def load(folder: Path, devices: object, **sections: dict):
    raw = yaml.safe_load(PROFILE.read_text())
    raw["compute"]["devices"] = devices
    for section, values in sections.items():
        raw[section] |= values
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return load_params(path)


def test_one_device_runs_in_this_process():
    with on_devices(compute_of(1)):
        assert (ranks.count(), ranks.rank(), ranks.is_first()) == (1, 0, True)
        assert ranks.slots(6) == slice(0, 6)
        assert ranks.own(range(3)) == range(3)
        assert list(ranks.in_order("abc", 3)) == ["a", "b", "c"]
    assert not torch.distributed.is_initialized()


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused = "compute.devices: found 3; this process sees 2 GPUs, and allowed are 1 to 2"
    with pytest.raises(UserError, match=refused), on_devices(compute_of(3)):
        raise AssertionError("the stage runs")


def test_devices_default_to_one_and_may_share_batches(tmp_path):
    assert load_params(PROFILE).compute.devices == 1
    assert load(tmp_path, 2, teacher={"batch_size": 6}, distill={"batch_size": 4}).compute.devices == 2


@pytest.mark.parametrize("devices", [0, -1, "all", 1.5])
def test_devices_are_a_count(tmp_path, devices):
    with pytest.raises(UserError, match="compute.devices: found"):
        load(tmp_path, devices)


def test_batches_that_devices_cannot_share_are_named_together(tmp_path):
    with pytest.raises(UserError) as refused:
        load(tmp_path, 4, teacher={"batch_size": 6}, distill={"batch_size": 2})
    lines = [line for line in str(refused.value).splitlines() if "compute.devices" in line]
    assert any("found 4 with teacher.batch_size 6; allowed are its divisors" in line for line in lines)
    assert any("with runs.vanilla.batch_size 2" in line for line in lines)


def test_a_given_teacher_has_no_batches(tmp_path):
    checkpoint = {"checkpoint": "checkpoints/teacher.pth", "batch_size": 3}
    assert load(tmp_path, 2, teacher=checkpoint, distill={"batch_size": 4}).teacher.batch_size == 3


def test_compiled_steps_are_refused(tmp_path):
    with pytest.raises(UserError, match="compute.devices: found 2 with runs.vanilla.compile true; allowed is 1"):
        load(tmp_path, 2, distill={"batch_size": 4, "compile": True})


def test_threads_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    assert ranks.share_of_threads(8) == 8
    monkeypatch.setattr(ranks, "count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert [ranks.share_of_threads(threads) for threads in (8, 2)] == [2, 1]
