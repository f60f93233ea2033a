"""A training on a GPU repeats its bits, resumes with them, and its host waits for the GPU only to read losses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from segdistill.core.errors import UserError
from segdistill.nets.registry import build
from segdistill.training import loop
from segdistill.training.checkpoint import Checkpointer
from segdistill.training.loop import train, update
from segdistill.training.mixing import Mixer
from segdistill.training.optimizers import make_optimizer
from support.on_gpu import needs_gpu, repeatable_gpu  # noqa: F401 - a fixture
from support.tiny_training import (
    CLASSES,
    KilledError,
    TinyNet,
    assert_same,
    at,
    distilled,
    killed,
    make_job,
    run,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error:.*does not have a deterministic implementation"),
]
OUTPUT_STRIDES = {"deeplabv3plus_mobilenet": 16, "deeplabv3plus_resnet50": 16, "pidnet_s": 8, "ddrnet23_slim": 8}


def seeded(arch: str):
    torch.manual_seed(3)
    return build(arch, CLASSES, OUTPUT_STRIDES[arch])


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", OUTPUT_STRIDES)
def test_training_on_a_gpu_repeats_and_resumes_with_the_same_bits(tmp_path, repeatable_gpu, arch, dtype):  # noqa: F811
    given = {"compute": repeatable_gpu._replace(dtype=dtype), "kl_resolution": "full", "lr": 0.01}
    straight = run(tmp_path / "straight", net=seeded(arch), **distilled(), **given)
    assert_same(run(tmp_path / "again", net=seeded(arch), **distilled(), **given), straight)
    with pytest.raises(KilledError):
        run(tmp_path / "killed", net=seeded(arch), hook=at(6, killed), **distilled(), **given)
    assert_same(run(tmp_path / "killed", net=seeded(arch), **distilled(), **given), straight)


@needs_gpu
def test_training_on_a_gpu_follows_the_cpu(tmp_path, repeatable_gpu):  # noqa: F811
    """Without dropout, which draws other numbers on a GPU."""
    given = distilled() | {"steps": 2, "log_every_steps": 1}
    _, expected = run(tmp_path / "cpu", net=TinyNet(dropout=0.0), **given)
    _, found = run(tmp_path / "gpu", net=TinyNet(dropout=0.0), compute=repeatable_gpu, **given)
    for key in ("loss", "label_loss", "distill_loss"):
        assert [point[key] for point in found] == pytest.approx([point[key] for point in expected], rel=1e-4)


@needs_gpu
@pytest.mark.parametrize("where", ["all", "label_probability"])
def test_the_host_does_not_wait_for_the_gpu_in_a_step(repeatable_gpu, where):  # noqa: F811
    job = make_job(
        **distilled(), compute=repeatable_gpu, mixer=Mixer("cutmix", 1.0, 0, "distill", 4), distill_where=where
    )
    job.compute.place(job.net).train()
    optimizer, batches = make_optimizer(job.net, job.settings), [job.batches.load(step) for step in range(6)]
    for step in range(3):  # kernels are loaded and constants copied
        update(job, optimizer, step, batches[step])
    torch.cuda.set_sync_debug_mode("error")  # a RuntimeError wherever the host waits
    try:
        losses = [update(job, optimizer, step, batches[step])[1] for step in range(3, 6)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.stack(losses).isfinite().all()


def assert_late_nan_is_refused(scratch: Path, **changed) -> None:
    """Train with a loss that is NaN in step 6 and read after step 8: the checkpoint stays that of step 4."""
    seed = make_job(**distilled()).batches.batches.indices(5).seed
    job = make_job(**distilled(nan_for={seed}), **changed, schedule="constant", log_every_steps=8)
    names = ", ".join(dict.fromkeys(job.batches.names(5)))
    with pytest.raises(UserError) as error, Checkpointer(job.name, "key", scratch) as checkpointer:
        train(job, checkpointer)
    assert str(error.value) == f"distill/tiny: loss is nan at step 6, lr 0.1, frames {names}; not saved"
    with Checkpointer(job.name, "key", scratch) as checkpointer:
        assert checkpointer.load()["step"] == 4


@needs_gpu
def test_a_loss_on_a_gpu_that_is_not_finite_is_refused_before_a_checkpoint(tmp_path, repeatable_gpu):  # noqa: F811
    assert_late_nan_is_refused(tmp_path, compute=repeatable_gpu)


def test_a_loss_that_is_read_late_is_refused_before_a_checkpoint(tmp_path, monkeypatch):
    """As on a GPU: a step does not look at its loss."""
    monkeypatch.setattr(loop, "math", SimpleNamespace(isfinite=lambda loss: True))
    assert_late_nan_is_refused(tmp_path)
