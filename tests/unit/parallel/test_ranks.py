"""A run on several ranks computes what one process computes: batches, gradients, losses, evaluations, checkpoints."""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest
import torch

from support import on_ranks
from support.tiny_training import KilledError, at, killed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STOPPED_AFTER = 4  # steps of the training that ranks continue
LIMIT_S = 240


@pytest.fixture(scope="module", params=[2, 4], ids=lambda count: f"{count} ranks")
def found(request, tmp_path_factory, one_thread) -> list[dict]:
    """Return what each rank found. The ranks are forks: each process of torchrun would import torch again."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.raises(KilledError):
        on_ranks.trained(folder / "stopped", "plain", hook=at(STOPPED_AFTER + 1, killed))
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # What torchrun has in the environment of its ranks.
    common = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    common |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(request.param))

    def be_rank(rank: int) -> None:
        os.environ |= common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        on_ranks.main(folder)

    processes = [
        multiprocessing.get_context("fork").Process(target=be_rank, args=[rank], daemon=True)
        for rank in range(request.param)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=LIMIT_S)
    assert [process.exitcode for process in processes] == [0] * request.param
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(request.param)]


def assert_close(found, wanted, tolerance: float) -> None:
    assert (found - wanted).abs().max() <= tolerance * max(1, wanted.abs().max())


@pytest.mark.parametrize("case", on_ranks.CASES)
def test_parts_of_the_ranks_are_the_batch_of_one_process(found, case):
    for step, wanted in enumerate(on_ranks.inputs(case)):
        parts = zip(*(of_rank["inputs"][case][step] for of_rank in found), strict=True)
        joined = [torch.cat(part) for part in parts]
        assert len(joined) >= 2
        assert all(torch.equal(part, whole) for part, whole in zip(joined, wanted, strict=True))


@pytest.mark.parametrize("case", on_ranks.CASES)
def test_first_gradient_is_that_of_one_process(found, case):
    wanted = on_ranks.first_gradients(case)
    for of_rank in found:
        assert of_rank["gradients"][case].keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert gradient.dtype == torch.float64
            assert_close(of_rank["gradients"][case][name], gradient, 1e-9)


@pytest.mark.parametrize("case", on_ranks.CASES)
def test_first_losses_are_those_of_one_process(found, case):
    wanted = on_ranks.first_losses(case)
    for of_rank in found:
        assert_close(of_rank["losses"][case], wanted, 1e-6)


@pytest.mark.parametrize("training", ["trained", "continued"])
def test_ranks_end_with_the_same_bytes(found, training):
    weights, curve = found[0][training]
    for others, curve_of_other in (of_rank[training] for of_rank in found[1:]):
        assert all(torch.equal(value, others[name]) for name, value in weights.items())
        assert curve_of_other == curve


def test_ranks_continue_the_training_of_one_process(found, tmp_path):
    _, wanted = on_ranks.trained(tmp_path, "plain")
    _, curve = found[0]["continued"]
    assert curve[:STOPPED_AFTER] == wanted[:STOPPED_AFTER]
    assert len(curve) == len(wanted)
    assert curve[STOPPED_AFTER]["loss"] == pytest.approx(wanted[STOPPED_AFTER]["loss"], abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluation_is_that_of_one_process(found, batch_size):
    metrics, kept, frames = on_ranks.evaluation(batch_size)
    (of_first, kept_by_first, frames_of_first), *others = (of_rank["evaluations"][batch_size] for of_rank in found)
    assert of_first == metrics
    assert [index for index, *_ in frames_of_first] == list(range(len(frames)))
    for given, expected in zip(frames_of_first, frames, strict=True):
        assert all(np.array_equal(part, whole) for part, whole in zip(given, expected, strict=True))
    assert kept_by_first.keys() == kept.keys()
    assert all(np.array_equal(kept_by_first[index], classes) for index, classes in kept.items())
    assert others == [(metrics, {}, [])] * len(others)
