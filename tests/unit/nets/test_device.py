"""What a GPU is set to before it computes: exact float32, results that repeat, and nothing of it for a benchmark."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.data.transfer import constant, to_device
from segdistill.nets.device import TorchPredictor, device_of, resolve_device
from segdistill.nets.registry import build
from segdistill.params.model import ComputeParams
from support.on_gpu import needs_gpu, repeatable_gpu  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture
def seems_to_have_a_gpu(monkeypatch):
    """torch says that it has a GPU; its settings and the variable are as before afterwards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(CUBLAS, "")  # so that it is restored
    monkeypatch.delenv(CUBLAS)
    mode, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    tf32 = torch.backends.cudnn.allow_tf32
    yield
    torch.set_deterministic_debug_mode(mode)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cudnn.allow_tf32 = tf32


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_has_its_index_as_tensors_there_have(seems_to_have_a_gpu, device):
    assert resolve_device(device, "auto", 1).device == torch.device("cuda:0")


def test_a_gpu_computes_float32_convolutions_in_float32(seems_to_have_a_gpu):
    torch.backends.cudnn.allow_tf32 = True
    resolve_device("cuda", "float32", 1)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    # torch's compiler reads the old flags, which raise an error where they contradict the new ones.
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_a_stage_that_trains_makes_a_gpu_repeat_its_results(seems_to_have_a_gpu):
    torch.set_deterministic_debug_mode("default")
    device_of(ComputeParams(device="auto", precision="auto", threads=1))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert os.environ[CUBLAS] == ":4096:8"


def test_a_workspace_that_the_user_has_set_stays(seems_to_have_a_gpu, monkeypatch):
    monkeypatch.setenv(CUBLAS, ":16:8")
    device_of(ComputeParams(device="cuda", precision="auto", threads=1))
    assert os.environ[CUBLAS] == ":16:8"


def test_timing_a_gpu_leaves_the_engines_on_the_cpu_as_they_are(seems_to_have_a_gpu):
    torch.set_deterministic_debug_mode("default")
    resolve_device("cuda", "auto", 1)  # as the benchmark stage does
    assert not torch.are_deterministic_algorithms_enabled()
    assert CUBLAS not in os.environ


def test_a_cpu_is_left_as_it_is():
    mode, tf32 = torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32
    assert device_of(ComputeParams(device="cpu", precision="float32", threads=1)).device == torch.device("cpu")
    assert (torch.get_deterministic_debug_mode(), torch.backends.cudnn.allow_tf32) == (mode, tf32)


def test_cuda_without_a_device_is_one_message(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="compute.device: found cuda; this machine has no CUDA device"):
        resolve_device("cuda", "auto", 1)


def test_a_copy_to_the_cpu_is_no_copy():
    tensor = torch.ones(3)
    assert to_device(tensor, torch.device("cpu")) is tensor


class Recorded:
    """A tensor that says what is done with it, in place of one that only CUDA can have."""

    def __init__(self, device: str, pinned: bool = False, done: tuple = ()) -> None:
        self.device, self.pinned, self.done = torch.device(device), pinned, done

    def is_pinned(self) -> bool:
        return self.pinned

    def contiguous(self) -> Recorded:
        return Recorded(str(self.device), self.pinned, (*self.done, "joined"))

    def pin_memory(self) -> Recorded:
        assert self.device.type == "cpu", "torch refuses to pin others"
        return Recorded("cpu", True, (*self.done, "pinned"))

    def to(self, device: torch.device, non_blocking: bool = False) -> tuple:
        return (*self.done, "queued" if non_blocking else "waited for")


@pytest.mark.parametrize(
    ("tensor", "done"),
    [
        (Recorded("cpu"), ("joined", "pinned", "queued")),
        (Recorded("cpu", pinned=True), ("queued",)),
        (Recorded("cuda:0"), ("waited for",)),  # torch returns the same tensor
    ],
)
def test_a_copy_to_a_gpu_is_queued_from_page_locked_memory(tensor, done):
    assert to_device(tensor, torch.device("cuda", 0)) == done


def test_a_constant_of_an_evaluation_can_be_trained_with():
    values, cpu = (1.0, 2.0, 5.0), torch.device("cpu")
    with torch.inference_mode():
        kept = constant(values, torch.float64, cpu)
    assert not kept.is_inference()
    assert kept.tolist() == list(values)
    assert constant(values, torch.float64, cpu) is kept


@needs_gpu
def test_a_gpu_gives_the_logits_of_the_cpu(repeatable_gpu):  # noqa: F811
    torch.manual_seed(0)
    net = build("deeplabv3plus_resnet50", 19).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), np.uint8)
    cpu = repeatable_gpu._replace(device=torch.device("cpu"))
    expected = TorchPredictor(net, cpu).logits(images)
    found = TorchPredictor(net, repeatable_gpu).logits(images).cpu()
    # In TF32 the difference would be a hundred times as large.
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
