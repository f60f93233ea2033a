"""What tests share: the helper modules that lie beside this file, torch on one thread, files of a small net."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from segdistill.nets import device as freed_memory
from support.png_decoders import DECODERS, decoding_with


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """torch begins with another seed in every process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _freed_memory_goes_back():
    """A stage keeps what it frees, for as long as its process lives; tests share theirs with others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freed_memory, "ctypes", SimpleNamespace(CDLL=lambda _: None))
        yield


@pytest.fixture(scope="module")
def one_thread():
    """Inputs are small: more threads only get into each other's way, badly so on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=DECODERS)
def decoder(request):
    """Both ways of decoding a PNG, in turn."""
    with decoding_with(request.param) as name:
        yield name


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """The files of one small random net, for tests that only read them."""
    from support.model_files import ModelFiles

    return ModelFiles(tmp_path_factory.mktemp("models"))
