"""Fixtures of all tests: torch on one thread, the files of a small network, decoders of PNG."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from segdistill.nets import device
from support.png_decoders import DECODERS, decoding_with

# A shell starts background jobs with SIGINT ignored, and processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Seed torch, which begins with another seed in every process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_fsync():
    """Leave files to the system: each fsync waits for the disk, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _freed_memory_goes_back():
    """Leave malloc alone: a stage keeps the memory that it frees, and tests share one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "ctypes", SimpleNamespace(CDLL=lambda _: None))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Run torch on one thread: inputs are small, and threads wait for each other on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def city(request, tmp_path_factory):
    """A folder in which prepare, teacher-check and teacher-logits have run with the test module's `params_of()`."""
    from support.tiny_city import build_city

    folder = tmp_path_factory.mktemp("city")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_city(request.module.params_of())
    return folder


@pytest.fixture(params=DECODERS)
def decoder(request):
    """Each way of decoding a PNG, in turn."""
    with decoding_with(request.param) as name:
        yield name


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """The files of one small random network, for tests that only read them."""
    from support.model_files import ModelFiles

    return ModelFiles(tmp_path_factory.mktemp("models"))
