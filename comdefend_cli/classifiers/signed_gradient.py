"""The step along the sign of the gradient that FGSM and BIM take, and the gradient itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

#: Makes the context that a model computes in.
Autocast = Callable[[], AbstractContextManager[Any]]


def signed_gradient(model: nn.Module, x: Tensor, y: Tensor, epsilon: Tensor, steps: int, autocast: Autocast = nullcontext) -> Tensor:
    """FGSM (Goodfellow et al., 2015) for one step, BIM (Kurakin et al., 2017) for more, to train on.

    Args:
        model: from (N, C, H, W) in [0, 1] to logits.
        x: the images.
        y: their labels, (N,).
        epsilon: most L-infinity distance, (N, 1, 1, 1), in units of the images.
        steps: each of epsilon / steps, or 1.25 times that where there are several.
        autocast: makes the context that the model computes in.

    Returns:
        The shape of x, in [0, 1], without gradient.
    """
    size = epsilon * ((1.25 if steps > 1 else 1.0) / steps)
    attacked = x.detach()
    for _ in range(steps):
        moved = attacked + size * input_gradient(model, attacked, y, autocast).sign()
        attacked = torch.min(torch.max(moved, x - epsilon), x + epsilon).clamp(0, 1)
    return attacked


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, autocast: Autocast = nullcontext) -> Tensor:
    """Of the cross-entropy, summed over the images, to the images (N, C, H, W); zeros where the logits do not depend on them."""
    x = x.detach().requires_grad_()
    with torch.enable_grad(), autocast():
        loss = cross_entropy(model(x).float(), y, reduction="sum")
    found = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    return torch.zeros_like(x) if found is None else found
