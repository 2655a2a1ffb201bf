"""Checkpoints of training runs: safetensors with state and history, settings and step in the header, written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize_tensors

from comdefend_cli.errors import TrainingError, explain
from comdefend_cli.runtime.files import write_atomically
from comdefend_cli.training.distributed import together
from comdefend_cli.training.history import PREFIX, History
from comdefend_cli.training.loop import Report, Trainer

KEY = "comdefend-checkpoint"
#: What settings were called in older checkpoints.
OLD_NAMES = {"input_noise_min": "input_noise_least"}


def run_with_checkpoints(
    trainer: Trainer, history: History, path: Path, *, every: int, measure_every: int | None = None
) -> Iterator[Report]:
    """Train as :meth:`.Trainer.run` does, with checkpoints before the first step, every so many steps, and at the end or where it stops.

    Args:
        trainer: the run; of several processes the first one writes.
        history: what goes before; each report is added to it.
        path: of the checkpoint.
        every: steps between checkpoints.
        measure_every: as of `Trainer.run`.

    Raises:
        TrainingError: as `Trainer.run` does.
        ComdefendError: a checkpoint cannot be written.
    """

    def save() -> None:
        with together():
            if trainer.rank == 0:
                save_checkpoint(path, trainer, history)

    if trainer.step_done == 0:
        save()
    for report in trainer.run(measure_every=measure_every):
        history.append(report)
        yield report
        if report.step % every == 0 or report.step == trainer.steps or trainer.stopping:
            save()


def save_checkpoint(path: Path, trainer: Trainer, history: History) -> None:
    """Write all of a run's state, replacing the checkpoint before.

    Raises:
        ComdefendError: it cannot be written.
    """
    header = {"command": trainer.command, "processes": trainer.processes, "config": trainer.settings}
    header |= {"step": trainer.step_done, "steps": trainer.steps, "columns": list(history.columns)}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.state().items()} | history.tensors()
    write_atomically(path, serialize_tensors(state, {KEY: json.dumps(header)}), overwrite=True)


def checkpoint_is_final(path: Path, command: str) -> bool:
    """Whether a checkpoint is of a run that has done all its steps, and has only its results left to write.

    Raises:
        TrainingError: there is no checkpoint, or it cannot be read.
    """
    with _reading(path, command), safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[KEY])
        return float(header["step"]) >= float(header.get("steps", header["config"].get("steps", math.inf)))


def load_checkpoint(path: Path, trainer: Trainer) -> History:
    """Put a run where its checkpoint left it, and return its history.

    Raises:
        TrainingError: there is no checkpoint, it cannot be read, or it is of a run with other settings.
    """
    with _reading(path, trainer.command):
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("command", trainer.command) != trainer.command:
            raise ValueError(f"it is of {header['command']}")
        _refuse_other_settings(path, dict(header["config"]), trainer)
        history = History(trainer.measure_name)
        history.load(header, tensors)
        trainer.load_state({name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}, int(header["step"]))
        return history


@contextmanager
def _reading(path: Path, command: str) -> Iterator[None]:
    if not path.exists():
        raise TrainingError(f"{path}: no checkpoint to resume from; start without --resume, or name the --out of the run that was stopped")
    try:
        yield
    except torch.OutOfMemoryError:  # A RuntimeError too, but not the file's fault.
        raise
    except (OSError, SafetensorError, AttributeError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise TrainingError(f"{path}: not a checkpoint of {command}: {explain(error)}; start anew without --resume") from error


def _refuse_other_settings(path: Path, saved: dict[str, Any], trainer: Trainer) -> None:
    """Name the first setting in which a checkpoint differs; one that it does not know yet had its default."""
    defaults = {item.name: item.default for item in fields(trainer.config)}
    for name, now in trainer.settings.items():
        before = saved.get(name, saved.get(OLD_NAMES.get(name, name), defaults.get(name)))
        if before != now:
            raise TrainingError(
                f"{path}: is of a run with --{name.replace('_', '-')} {_said(before)}, not {_said(now)}; "
                "resume with the same settings, or start anew with another --out"
            )


def _said(value: Any) -> str:
    return "unset" if value is None or value == "" else str(value)
