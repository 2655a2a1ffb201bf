"""What the training commands share: settings from options, outputs that a run may replace, the run itself, shown as it goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from comdefend_cli.cli import console, progress
from comdefend_cli.cli.console import err, notice
from comdefend_cli.cli.preparation import refuse_tensor_file
from comdefend_cli.errors import UsageError
from comdefend_cli.runtime.files import open_locked
from comdefend_cli.runtime.parts import shorten_name, sweep_parts
from comdefend_cli.training.classifier_config import BaselineConfig, ClassifierConfig
from comdefend_cli.training.config import TrainConfig

if TYPE_CHECKING:
    import torch

    from comdefend_cli.training.history import History
    from comdefend_cli.training.loop import Report, Trainer

Config = TypeVar("Config", TrainConfig, ClassifierConfig, BaselineConfig)


def make_config(kind: type[Config], options: Mapping[str, Any], where: torch.device, **found: object) -> Config:
    """Settings from a command's options of the same names, the precision for the device, and what else was found out."""
    from comdefend_cli.training.loop import resolve_training_precision

    named = {item.name: options[item.name] for item in fields(kind) if item.name in options}
    return kind(**{**named, "precision": resolve_training_precision(options["precision"], where), **found})


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_idle(context: typer.Context, names: Sequence[str], without: str) -> None:
    """Raise :class:`UsageError` when one of these options was given, which does nothing without another one."""
    for name in names:
        if is_given(context, name):
            raise UsageError(f"--{name.replace('_', '-')} does nothing without {without}: add it, or leave the option out")


def tell_device(options: Mapping[str, Any], where: torch.device, precision: str, *, quiet: bool) -> None:
    """Say where a run computes and how, if that was left to the program."""
    from comdefend_cli.runtime.device import describe_device, warn_of_emulation

    console.show_warnings(quiet)
    warn_of_emulation(precision, where)
    if "auto" in (options["device"], options["precision"]):
        notice(f"training on {describe_device(where)} in {precision}", quiet=quiet)


def refuse_outputs(
    outputs: Sequence[Path], command: str, *, overwrite: bool, resume: bool, what: str = "a weight file", room: int = 0
) -> bool:
    """Find out before hours of training what would fail after them; returns whether outputs may be replaced.

    Args:
        outputs: what the run will leave, the tensor file first; the checkpoint is beside it.
        command: what trains, for messages.
        overwrite, resume: as the person said.
        what: the tensor file is.
        room: bytes that must be free.

    Raises:
        UsageError: something is there that may not be replaced, or nothing is left to resume.
        TrainingError: there is no checkpoint to resume from, or it cannot be read.
        ComdefendError: the folder cannot be written to, or is full.
    """
    from comdefend_cli.runtime.files import refuse_existing
    from comdefend_cli.training.checkpoint import checkpoint_is_final

    out, checkpoint = outputs[0], outputs[0].with_suffix(".checkpoint")
    if resume and out.exists() and not checkpoint.exists():
        raise UsageError(f"{out}: this run is complete, nothing is left to resume")
    # Outputs beside a final checkpoint are this run's own: it was cut off while it wrote them.
    overwrite = overwrite or (resume and out.suffix == ".safetensors" and checkpoint_is_final(checkpoint, command))
    refuse_tensor_file(out, overwrite=overwrite, what=what, room=room)
    for path in outputs[1:]:
        refuse_existing(path, overwrite=overwrite)
    if not resume and not overwrite and checkpoint.exists():
        raise UsageError(f"{checkpoint}: is the checkpoint of an unfinished run; go on with --resume, or replace it with --overwrite")
    return overwrite


@contextmanager
def hold_outputs(out: Path) -> Iterator[None]:
    """Let no other run train into the same file meanwhile.

    Raises:
        UsageError: another one does.
        ComdefendError: nothing can be written beside it.
    """
    path = out.with_name(f".{shorten_name(out.name)}.lock")
    descriptor = open_locked(path, f"{out}: another run is training into it; wait for it, or use another --out")
    try:
        sweep_parts(out.with_suffix(".checkpoint"))  # A finished run, whose results alone are written, would leave it.
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def train_to_end(
    trainer: Trainer, checkpoint: Path, *, resume: bool, checkpoint_every: int, measure_every: int | None = None, quiet: bool
) -> History:
    """Train to the end, from the checkpoint on request, and show how it goes; the first Ctrl-C ends it with a checkpoint.

    Raises:
        KeyboardInterrupt: it was stopped so.
        ComdefendError: it collapsed, or a checkpoint cannot be read or written.
    """
    from comdefend_cli.training.checkpoint import load_checkpoint, run_with_checkpoints
    from comdefend_cli.training.distributed import together
    from comdefend_cli.training.history import History

    history = History(trainer.measure_name)
    if resume:
        with together():
            history = load_checkpoint(checkpoint, trainer)
        notice(f"going on after step {trainer.step_done}", quiet=quiet)

    last = history.last_measured()
    measured = "" if last is None else f"  {last:.2f} {trainer.unit}"

    def stop(number: int) -> None:  # Also under torchrun, which passes each signal on to its processes once.
        trainer.stop_asked = True

    with progress.show_steps(trainer.steps, done=trainer.step_done, quiet=quiet) as show, console.catch_interrupts(stop):
        for report in run_with_checkpoints(trainer, history, checkpoint, every=checkpoint_every, measure_every=measure_every):
            measured = measured if report.measured is None else f"  {report.measured:.2f} {trainer.unit}"
            text = f"loss {report.loss:.4g}{measured}  {report.images_per_second:.1f} images/s"
            if show:
                show(report.step, text)
            if report.measured is not None and not quiet:
                err.print(f"step {report.step}/{trainer.steps}  {text}{_describe_rest(report, trainer)}")
    if trainer.stopping:
        notice(f"stopped after step {trainer.step_done}; the same command with --resume goes on from {checkpoint}", quiet=quiet)
        raise KeyboardInterrupt
    return history


def _describe_rest(report: Report, trainer: Trainer) -> str:
    """The other figures, and the time left."""
    figures = "".join(f"  {name.replace('_', ' ')} {value:.3g}" for name, value in report.figures.items())
    left = (trainer.steps - report.step) * trainer.config.batch_size / report.images_per_second
    return f"{figures}  {timedelta(seconds=round(left))} left"
