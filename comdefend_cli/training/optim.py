"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for 3x3 kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

#: Coefficients of the quintic Newton-Schulz step, from the reference above.
_NS = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: U V^T of the singular value decomposition U S V^T.

    Args:
        matrix: (rows, columns), or several of them (..., rows, columns), float32 or float64.
        steps: of the Newton-Schulz iteration.

    Returns:
        The same shape and dtype, with the same singular vectors; singular values that were not tiny beside
        the largest end between about 0.7 and 1.2. Zero stays zero.
    """
    a, b, c = _NS
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return cast(Tensor, x.mT if tall else x)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal, on kernels seen as matrices (out, in * 3 * 3).

    `torch.optim.Muon` takes two-dimensional parameters only.

    Args:
        params: kernels (out, in, 3, 3), float32.
        lr: step size; the update is scaled by sqrt(max(1, out / in)).
        momentum: Nesterov's, from 0 to below 1.
        weight_decay: decoupled (Loshchilov and Hutter, 2019, arXiv:1711.05101): a step multiplies by 1 - lr * weight_decay.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            # Kernels of one shape go together: one by one, a GPU waits longer for each command than it works on it.
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._update(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient, average = cast(Tensor, parameter.grad), state["momentum"]
            average.lerp_(gradient, 1 - momentum)
            directions.append(gradient.lerp(average, momentum).flatten(1))
        outputs, inputs = parameters[0].shape[:2]
        for parameter, update in zip(parameters, orthogonalize(torch.stack(directions)), strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.view_as(parameter), alpha=-lr * max(1.0, outputs / inputs) ** 0.5)
