"""The signed-gradient step: its bounds, its closed form on a linear model, and FGSM and BIM as another library computes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from comdefend_cli.classifiers.signed_gradient import input_gradient, signed_gradient


@pytest.mark.parametrize("steps", [1, 4])
def test_attacks_in_training(steps: int) -> None:
    """The signed gradient raises the loss, and stays within epsilon and the range of images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    x, y = torch.rand(8, 1, 16, 16), torch.arange(8) % 2
    epsilon = torch.linspace(0.01, 0.1, 8).view(-1, 1, 1, 1)
    attacked = signed_gradient(model, x, y, epsilon, steps)
    distance = (attacked - x).abs().amax((1, 2, 3))
    assert bool((distance <= epsilon.flatten() + 1e-6).all()) and bool((distance > 0.5 * epsilon.flatten()).all())
    assert float(attacked.min()) >= 0 and float(attacked.max()) <= 1 and not attacked.requires_grad
    losses = [nn.functional.cross_entropy(model(part), y, reduction="none") for part in (x, attacked)]
    assert bool((losses[1] > losses[0]).all())


def test_one_step_is_fgsm() -> None:
    """On a linear model FGSM is epsilon times the sign of the weights' difference, in closed form."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 0.5, 3.0]]))
    x = torch.full((1, 1, 2, 2), 0.5)
    found = signed_gradient(model, x, torch.tensor([0]), torch.full((1, 1, 1, 1), 0.1), 1)
    # The loss of class 0 rises along w1 - w0 = (-1, 3, 0, 3).
    assert torch.allclose(found.flatten(), torch.tensor([0.4, 0.6, 0.5, 0.6]))


@pytest.mark.parametrize("steps", [1, 5])
def test_it_is_what_foolbox_computes(steps: int) -> None:
    """FGSM, and BIM of as many steps as long, are foolbox's on the same network and images."""
    foolbox = pytest.importorskip("foolbox")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).double().eval()
    x, y = torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 4
    attack = foolbox.attacks.LinfBasicIterativeAttack(rel_stepsize=1.25 / steps if steps > 1 else 1.0, steps=steps, random_start=False)
    expected, _, _ = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=0.03)
    found = signed_gradient(model, x, y, torch.full((6, 1, 1, 1), 0.03, dtype=torch.float64), steps)
    assert torch.allclose(found, expected, atol=1e-9)


def test_the_input_gradient_is_zero_where_nothing_depends_on_the_image() -> None:
    """A detached answer gives zeros, and any other the gradient of the summed cross-entropy, which leaves no trace on x."""

    class Detached(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 2)

    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 1])
    assert not bool(input_gradient(Detached(), x, y).any())
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    probabilities = model(x).softmax(1).detach()
    expected = (probabilities - nn.functional.one_hot(y, 2)) @ model[1].weight.detach()
    assert torch.allclose(input_gradient(model, x, y).flatten(1), expected, atol=1e-6) and not x.requires_grad
