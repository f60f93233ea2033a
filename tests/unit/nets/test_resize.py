"""Resizing by matrix products equals torch's bilinear resizing, and its gradient repeats bit for bit on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from segdistill.nets.resize import upsample, upsample_by_matrices
from support.on_gpu import needs_gpu, repeatable_gpu  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = [
    ((8, 16), (32, 64)),
    ((7, 11), (23, 50)),
    ((1, 5), (9, 5)),
    ((33, 65), (129, 257)),
    ((191, 3), (763, 10)),
    ((20, 30), (7, 11)),
    ((6, 9), (6, 9)),
]


def logits_of(size, channels: int = 5) -> torch.Tensor:
    return torch.randn(2, channels, *size).to(memory_format=torch.channels_last).requires_grad_()


def by_torch(logits: torch.Tensor, size) -> torch.Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach() - expected.detach()).abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize(("size", "size_px"), SIZES)
def test_matrix_products_resize_as_torch_does(size, size_px):
    logits = logits_of(size)
    found, expected = upsample_by_matrices(logits, size_px), by_torch(logits, size_px)
    assert relative_error(found, expected) < 5e-7
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, logits, weights)[0] for out in (found, expected)]
    assert relative_error(*gradients) < 1e-6  # a sum of more products


def test_matrix_products_give_channels_last_logits():
    assert upsample_by_matrices(logits_of((8, 16)), (32, 64)).is_contiguous(memory_format=torch.channels_last)


def test_autocast_does_not_round_float32_logits():
    logits = logits_of((8, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = upsample_by_matrices(logits, (32, 64))
    assert found.dtype == torch.float32
    assert relative_error(found, by_torch(logits, (32, 64))) < 5e-7


def test_logits_in_bfloat16_stay_so_within_their_rounding():
    logits = logits_of((8, 16))
    found = upsample_by_matrices(logits.bfloat16(), (32, 64))
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), by_torch(logits, (32, 64))) < 3 * 2**-8


def test_training_can_follow_an_evaluation():
    """The matrices are kept, and autograd takes no tensor of inference mode."""
    logits = logits_of((3, 4))
    with torch.inference_mode():
        upsample_by_matrices(logits, (13, 17))
    upsample_by_matrices(logits, (13, 17)).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_compiler_takes_the_matrix_products_in_one_piece():
    logits = logits_of((7, 11))
    compiled = torch.compile(upsample_by_matrices, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logits, (23, 50)), upsample_by_matrices(logits, (23, 50)))


def test_a_cpu_keeps_the_bits_of_torch():
    logits = logits_of((7, 11))
    assert torch.equal(upsample(logits, (23, 50)), by_torch(logits, (23, 50)))


@needs_gpu
def test_gpu_resizes_by_matrix_products_where_results_are_to_repeat(repeatable_gpu):  # noqa: F811
    logits = logits_of((192, 192), channels=19)
    expected = by_torch(logits, (768, 768))
    weights = torch.randn_like(expected)
    on_cpu = torch.autograd.grad(expected, logits, weights)[0]
    on_gpu = logits.detach().to(repeatable_gpu.device).requires_grad_()
    gradients = []
    for _ in range(3):
        found = upsample(on_gpu, (768, 768))
        gradients.append(torch.autograd.grad(found, on_gpu, weights.to(repeatable_gpu.device))[0])
    assert torch.equal(found, upsample_by_matrices(on_gpu, (768, 768)))
    assert relative_error(found.cpu(), expected) < 5e-7
    assert relative_error(gradients[0].cpu(), on_cpu) < 1e-6
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@needs_gpu
def test_gradient_of_max_pooling_repeats_on_a_gpu(repeatable_gpu):  # noqa: F811
    """ResNets begin with it. torch's kernel collects the gradient of each pixel in a fixed order."""
    pixels = torch.randn(4, 64, 96, 96, device=repeatable_gpu.device).to(memory_format=torch.channels_last)
    pixels = pixels.round_(decimals=1).requires_grad_()  # with ties
    pooled = F.max_pool2d(pixels, 3, stride=2, padding=1)
    weights = torch.randn_like(pooled)
    gradients = [torch.autograd.grad(pooled, pixels, weights, retain_graph=True)[0] for _ in range(4)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    of_cpu = pixels.detach().cpu().requires_grad_()
    expected = torch.autograd.grad(F.max_pool2d(of_cpu, 3, stride=2, padding=1), of_cpu, weights.cpu())[0]
    torch.testing.assert_close(gradients[0].cpu(), expected, rtol=1e-5, atol=1e-5)
