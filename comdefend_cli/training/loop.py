"""The training loop, one for all that is trained: schedule, precision, processes, checks, reports, stopping and state.

A subclass of :class:`Trainer` says what is minimized and what is measured. All that is random in a step comes from generators seeded
with (seed, step), so a resumed run sees what an uninterrupted one sees.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from comdefend_cli.data.sources import Dataset
from comdefend_cli.errors import TrainingError
from comdefend_cli.runtime.device import dtype_name, flush_subnormals, resolve_precision
from comdefend_cli.training.classifier_config import BaselineConfig, ClassifierConfig
from comdefend_cli.training.config import TrainConfig
from comdefend_cli.training.distributed import average, find_place, peer_error
from comdefend_cli.training.optim import gather_state, scatter_state


@dataclass(frozen=True)
class Report:
    """What one step showed.

    Attributes:
        step: steps done.
        loss: of the step's batch.
        measured: on test images, in the trainer's `unit`, or None where it was not measured.
        images_per_second: over all processes, since the run or its resumption began.
        figures: what else the trainer reports, by name.
    """

    step: int
    loss: float
    measured: float | None
    images_per_second: float
    figures: dict[str, float] = field(default_factory=dict)


class Trainer(ABC):
    """A training run, one step at a time; all that it carries from step to step is in `state()` and `step_done`.

    Args:
        config: the run's settings.
        dataset: images to learn from and to measure on.
        device: where to train.
        model: the network, float32.
        optimizers: of what is trained in it, each group at its peak rate.
        steps: in all.
        schedule: from a step, counted from 0, to its rate as a share of the peak.

    Attributes:
        command: what trains so, for messages and checkpoints.
        unit: of what is measured on the way.
        measure_name: what it is called in logs.
        measure_every: steps between measurements unless `run` is told otherwise.
        rank, processes: which of how many processes this one is.
        step_done: steps done.
        model: the network, on the device.
        most_norm: of a step's gradient.
        stop_asked: set it to end the run after the step in progress.
        stopping: whether some process was asked to stop and all of them know.
    """

    command: ClassVar[str]
    unit: ClassVar[str]
    measure_name: ClassVar[str] = "measured"
    measure_every = 100
    most_norm = math.inf
    model: nn.Module

    def __init__(
        self,
        config: TrainConfig | ClassifierConfig | BaselineConfig,
        dataset: Dataset,
        device: torch.device,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        steps: int,
        schedule: Callable[[int], float],
    ) -> None:
        self.config: Any = config
        self.dataset, self.device, self.steps = dataset, device, steps
        self.rank, self.processes = find_place()
        self.step_done = 0
        self.stop_asked = self.stopping = False
        self.model = model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._schedule, self._optimizers = schedule, optimizers
        self._parameters: list[nn.Parameter] = [parameter for group in self._groups() for parameter in group["params"]]
        for group in self._groups():
            group["initial_lr"] = group["lr"]

    @abstractmethod
    def losses(self) -> dict[str, Tensor]:
        """Of the step after `step_done`: "loss", a scalar that is minimized, and other scalars to report, over this process's share."""

    @abstractmethod
    def validate(self) -> float:
        """How good the model is on some test images, in `unit`."""

    @property
    def settings(self) -> dict[str, Any]:
        """What a run must share with the one whose checkpoint it goes on from, by the names of the options."""
        return asdict(self.config)

    def advice(self) -> str:
        """What to do about a collapse."""
        return "train again with a lower --lr"

    def check(self, figures: dict[str, float]) -> None:
        """Refuse what a step showed, before it changes the model.

        Raises:
            TrainingError: something is not finite.
        """
        if not all(map(math.isfinite, figures.values())):
            self.fail(f"collapsed at step {self.step_done + 1}: the loss is not finite; {self.advice()}")

    def after_step(self, figures: dict[str, float]) -> None:  # noqa: B027
        """What else a step changes in the model; nothing unless overridden."""

    @flush_subnormals()
    def step(self) -> dict[str, float]:
        """One optimizer step; returns the loss and the other figures, over all processes.

        Raises:
            TrainingError: it collapsed, memory ran out, or another process was lost.
        """
        try:
            with self._deterministic():
                losses = self.losses()
                gradients = torch.autograd.grad(losses["loss"], self._parameters)
                average(gradients)
                self._clip(gradients)
                figures = self._agree(losses)
                self.check(figures)
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    parameter.grad = gradient
                for group in self._groups():
                    group["lr"] = group["initial_lr"] * self._schedule(self.step_done)
                for optimizer in self._optimizers:
                    optimizer.step()
                self.after_step(figures)
        except torch.OutOfMemoryError as error:
            raise TrainingError("out of GPU memory: train with a smaller --batch-size") from error
        self.step_done += 1
        return figures

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Shorten a gradient that is longer than `most_norm`."""
        if math.isfinite(self.most_norm):
            norm = torch.nn.utils.get_total_norm(gradients)
            for gradient in gradients:
                gradient.mul_((self.most_norm / norm.clamp_min(1e-12)).clamp(max=1))

    def _groups(self) -> Iterator[dict[str, Any]]:
        """The optimizers' present groups of parameters; `load_state` replaces them."""
        return (group for optimizer in self._optimizers for group in optimizer.param_groups)

    def _agree(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes, which also learn here whether one was asked to stop."""
        values = torch.stack([value.detach() for value in losses.values()])
        values = torch.cat([values, values.new_tensor([self.stop_asked])])
        average([values])
        *means, stop = values.tolist()
        self.stopping = stop > 0
        return dict(zip(losses, means, strict=True))

    def run(self, *, measure_every: int | None = None) -> Iterator[Report]:
        """Train to the end, or to the step in which it was asked to stop, yielding a report a step.

        Args:
            measure_every: steps between measurements; the last step is always measured.

        Raises:
            TrainingError: as `step` and `validate` do.
        """
        every = measure_every or self.measure_every
        began, first = time.perf_counter(), self.step_done
        while self.step_done < self.steps and not self.stopping:
            figures = self.step()
            due = self.step_done % every == 0 or self.step_done == self.steps
            measured = self.validate() if due else None
            rate = (self.step_done - first) * self.config.batch_size / (time.perf_counter() - began)
            yield Report(self.step_done, figures.pop("loss"), measured, rate, figures)

    def record(self) -> dict[str, Any]:
        """How the model came to be and how good it is, for its file's header."""
        from comdefend_cli import __version__

        return {
            **asdict(self.config),
            "train_images": len(self.dataset.train),
            "comdefend_version": __version__,
            "torch_version": torch.__version__,
        }

    def state(self) -> dict[str, Tensor]:
        """Weights under "model." and what the optimizers carry, by name."""
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for optimizer in self._optimizers:
            state |= gather_state(optimizer, self.model)
        return state

    def load_state(self, state: dict[str, Tensor], step: int) -> None:
        """Continue from what `state()` returned after `step` steps.

        Raises:
            KeyError, ValueError, RuntimeError: something is missing, or of another shape.
        """
        self.model.load_state_dict({name.removeprefix("model."): state[name] for name in state if name.startswith("model.")})
        for optimizer in self._optimizers if step else ():
            scatter_state(optimizer, self.model, state)
        self.step_done = step

    def generator(self, number: int) -> torch.Generator:
        """The CPU's generator of one of the run's streams of random numbers, by its number."""
        # It takes 32 bits; a large odd factor keeps the seeds' streams apart.
        return torch.Generator().manual_seed((self.config.seed * 2_654_435_761 + number) % 2**32)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that networks compute in."""
        return nullcontext() if self.config.precision == "float32" else torch.autocast(self.device.type, torch.bfloat16)

    def fail(self, message: str) -> NoReturn:
        """Raise what all processes found: the first one says it."""
        raise TrainingError(message) if self.rank == 0 else peer_error(TrainingError.exit_code)

    def _deterministic(self) -> AbstractContextManager[Any]:
        """On CUDA, the same losses for the same seed: cuDNN's fastest algorithms sum in any order."""
        if self.device.type != "cuda":
            return nullcontext()
        cudnn = torch.backends.cudnn
        return cast(
            AbstractContextManager[Any],
            cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32),
        )


def resolve_training_precision(name: str, device: torch.device) -> str:
    """The precision's name for a training run; "auto" takes the fastest that the device computes natively and training knows.

    Raises:
        UsageError: the name is unknown, or the device does not compute in it.
    """
    chosen = dtype_name(resolve_precision(name, device))
    # Older GPUs are fastest in float16, which does not hold the gradients.
    return "float32" if name == "auto" and chosen == "float16" else chosen


@contextmanager
def fix_seed(seed: int) -> Iterator[None]:
    """Let PyTorch draw a network's initial weights by a seed, and leave its global stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
