"""Checkpoints of training runs: safetensors with settings, step and history in the header, written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize_tensors
from torch import Tensor, nn

from comdefend_cli.errors import TrainingError, reason
from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.training.optim import Muon

KEY = "comdefend-checkpoint"
#: What each optimizer carries from step to step.
_MOMENTS: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    Muon: ("momentum",),
    torch.optim.SGD: ("momentum_buffer",),
    torch.optim.Adam: ("exp_avg", "exp_avg_sq", "step"),
}


class Resumable(Protocol):
    """A run that can be put where it was."""

    @property
    def config(self) -> Any:
        """The settings, a dataclass."""
        ...

    @property
    def step_done(self) -> int:
        """Steps done."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that it carries from step to step."""
        ...

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from what `state()` returned after `step` steps."""
        ...


def save_checkpoint(path: Path, run: Resumable, history: list[Any], **more: Any) -> None:
    """Write all of a run's state, replacing the checkpoint before.

    Args:
        path: where to.
        run: the run.
        history: its reports, dataclasses.
        more: further fields of the header, as JSON values.

    Raises:
        ComdefendError: it cannot be written.
    """
    header = {**more, "config": asdict(run.config), "step": run.step_done, "history": [asdict(report) for report in history]}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in run.state().items()}
    write_atomically(path, serialize_tensors(state, {KEY: json.dumps(header)}), overwrite=True)


def is_final(path: Path, kind: str) -> bool:
    """Whether a checkpoint is of a run, of so many `steps` in its settings, that has done them all.

    Raises:
        TrainingError: as :func:`load_checkpoint`.
    """
    with _reading(path, kind), safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[KEY])
        return int(header["step"]) >= int(header["config"]["steps"])


def load_checkpoint(path: Path, run: Resumable, kind: str) -> list[dict[str, Any]]:
    """Put a run where its checkpoint left it.

    Args:
        path: of the checkpoint.
        run: a new run with the same settings.
        kind: the command that wrote it, for messages.

    Returns:
        The history, each report's fields.

    Raises:
        TrainingError: there is no checkpoint, it cannot be read, or it is of a run with other settings.
    """
    with _reading(path, kind):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[KEY])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _refuse_other_settings(path, dict(header["config"]), run.config)
        run.load_state(state, int(header["step"]))
        return [dict(report) for report in header["history"]]


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    if not path.exists():
        raise TrainingError(f"{path}: no checkpoint to resume from; start without --resume, or name the --out of the run that was stopped")
    try:
        yield
    except (OSError, SafetensorError, AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise TrainingError(f"{path}: not a checkpoint of {kind}: {reason(error)}; start anew without --resume") from error


def _refuse_other_settings(path: Path, saved: dict[str, Any], config: Any) -> None:
    """Name the first setting in which a checkpoint differs; one that it does not know yet had its default."""
    for item in fields(config):
        before, now = saved.get(item.name, item.default), getattr(config, item.name)
        if before != now:
            raise TrainingError(
                f"{path}: is of a run with --{item.name.replace('_', '-')} {_said(before)}, not {_said(now)}; "
                "resume with the same settings, or start anew with another --out"
            )


def _said(value: Any) -> str:
    return "unset" if value is None or value == "" else str(value)


def gather(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """A model's state under "model." and its optimizers' moments, by the names of the parameters."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, moments in optimizer.state.items():
            state |= {f"{key}.{names[id(parameter)]}": moments[key] for key in _MOMENTS[type(optimizer)]}
    return state


def scatter(state: dict[str, Tensor], model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], *, moments: bool = True) -> None:
    """Put back what :func:`gather` returned; without `moments`, as before the first step, the model alone.

    Raises:
        KeyError, RuntimeError: something is missing, or of another shape.
    """
    model.load_state_dict({name.removeprefix("model."): state[name] for name in state if name.startswith("model.")})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers if moments else ():
        for parameter in (item for group in optimizer.param_groups for item in group["params"]):
            own = {key: state[f"{key}.{names[id(parameter)]}"] for key in _MOMENTS[type(optimizer)]}
            optimizer.state[parameter] = {key: _like(parameter, key, moment) for key, moment in own.items()}


def _like(parameter: Tensor, key: str, moment: Tensor) -> Tensor:
    """A moment where its optimizer keeps it, in the parameter's memory layout; Adam counts its steps on the CPU."""
    if key == "step":
        return moment.clone()
    return torch.empty_like(parameter).copy_(moment.view(parameter.shape))
