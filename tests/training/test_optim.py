"""Muon's pieces against the singular value decomposition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from comdefend_cli.training.optim import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (64, 128), (256, 1152)])
def test_orthogonalize_keeps_directions_and_evens_out_sizes(shape: tuple[int, int]) -> None:
    """The singular vectors stay those of the matrix (U V^T, by float64), and singular values come near one."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix).double()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    nearest = u @ v
    cosine = (result * nearest).sum() / (result.norm() * nearest.norm())
    assert cosine > 0.97


def test_a_step_goes_against_the_gradient_by_the_learning_rate() -> None:
    """The first step moves a kernel by lr * sqrt(max(1, out / in)) times an orthogonal matrix, downhill."""
    torch.manual_seed(0)
    for outputs, inputs in ((8, 2), (2, 8)):
        kernel = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        before = kernel.detach().clone()
        kernel.grad = torch.randn_like(kernel)
        Muon([kernel], lr=0.1).step()
        moved = (kernel.detach() - before).flatten(1)
        assert float((moved * kernel.grad.flatten(1)).sum()) < 0
        scale = 0.1 * max(1.0, outputs / inputs) ** 0.5
        values = torch.linalg.svdvals(moved) / scale
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_weight_decay_is_apart_from_the_gradient() -> None:
    """A step with it is the same step from a kernel that is smaller by 1 - lr * weight_decay; without a gradient nothing moves."""
    torch.manual_seed(0)
    plain, decayed, still = (nn.Parameter(torch.randn(4, 6, 3, 3)) for _ in range(3))
    before, untouched = plain.detach().clone(), still.detach().clone()
    with torch.no_grad():
        decayed.copy_(plain)
    plain.grad = torch.randn_like(plain)
    decayed.grad = plain.grad.clone()
    Muon([plain], lr=0.1).step()
    Muon([decayed, still], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(decayed - plain, -0.05 * before, rtol=0, atol=1e-6)
    assert torch.equal(still, untouched)


def test_muon_minimizes() -> None:
    """A least-squares problem over a kernel is solved."""
    torch.manual_seed(0)
    target, kernel = torch.randn(4, 6, 3, 3), nn.Parameter(torch.zeros(4, 6, 3, 3))
    optimizer = Muon([kernel], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (kernel - target).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.99
        optimizer.step()
    assert loss.item() < 0.1 * float(target.square().mean())
