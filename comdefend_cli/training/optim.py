"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for 3x3 kernels, its partner, and the state of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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


def pair_with_muon(
    partner: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    model: nn.Module,
    kernels: Sequence[nn.Parameter],
    lr: float,
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Muon for those kernels of a model, if there are any, and the optimizer that `partner` makes for its other parameters."""
    chosen = {id(kernel) for kernel in kernels}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [*([Muon(kernels, lr, weight_decay=weight_decay)] if kernels else []), partner(rest)]


def gather_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What an optimizer carries from step to step, each tensor under what it calls it, a dot, and the parameter's name in the model."""
    names = _names(optimizer, model)
    state = optimizer.state_dict()["state"]
    return {f"{key}.{names[index][0]}": value for index, own in state.items() for key, value in own.items()}


def scatter_state(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what :func:`gather_state` returned; other tensors are not looked at.

    Raises:
        KeyError: nothing is there for a parameter.
        ValueError: something has another shape than its parameter.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        key, _, name = full.partition(".")
        found.setdefault(name, {})[key] = value
    state = {}
    for index, (name, parameter) in enumerate(_names(optimizer, model)):
        own = {key: value for key, value in found[name].items() if key != "model"}
        if not own:
            raise KeyError(f"{name} in the optimizer's state")
        state[index] = {key: _like(parameter, value, f"{key}.{name}") for key, value in own.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Its parameters with their names, in the order in which `state_dict` numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(names[id(parameter)], parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _like(parameter: Tensor, value: Tensor, name: str) -> Tensor:
    """A scalar, such as Adam's count of steps, as it is; what has a value for each weight in the parameter's memory layout."""
    if value.ndim == 0:
        return value.clone()
    if value.shape != parameter.shape:
        raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
    return torch.empty_like(parameter).copy_(value)
